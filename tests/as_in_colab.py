"""Run the notebook as Colab would: no file of it, maybe older Python and torch. Not part of `make test`.

    python tests/as_in_colab.py [--python PATH] [--pt FILE] [NAME=VALUE ...]

PATH is the interpreter of an environment that holds what the notebook imports, and ipykernel; by default this one. FILE
is a .pt to upload beside the notebook. Without it there is nothing, so the notebook trains, for one epoch of 2,000
images unless the settings say otherwise. Fails if a cell ends with an error, if the .pt, .csv or zip is missing, if an
uploaded .pt was changed, or if a verdict is no but for the accuracy and for the notebook, which is to be added.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import override, setting, tagged  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--pt", type=Path)
    a = parser.parse_args()
    notebook = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    settings = ({} if a.pt else dict(EPOCHS=1, TRAIN_LIMIT=2000)) | dict(a.settings)
    student = settings.get("STUDENT_ID", "StudentID")
    parameters.source = override(parameters.source, settings)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "content")
        content.mkdir()
        (content / "data").symlink_to((ROOT / "data").resolve())
        pt = content / f"{student}_submission.pt"
        if a.pt:
            shutil.copy(a.pt, pt)
        kernel = Path(folder, "kernels", "other")
        kernel.mkdir(parents=True)
        command = [a.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps(dict(argv=command, display_name="other", language="python")))
        os.environ["JUPYTER_PATH"] = folder
        os.environ.pop("JPY_SESSION_NAME", None)
        resources = dict(metadata=dict(path=str(content)))
        NotebookClient(notebook, timeout=None, kernel_name="other", resources=resources).execute()
        files = sorted(p.name for p in content.iterdir() if p.is_file())
        assert not a.pt or pt.read_bytes() == a.pt.read_bytes(), "the .pt was changed"
    (export,) = tagged(notebook, "export")
    said = "".join(o.get("text", "") for o in export.outputs)
    print(said)
    assert files == [f"{student}_HW3.zip", f"{student}_submission.csv", f"{student}_submission.pt"], files
    no = {line.strip() for line in re.findall(r"(?m)^ *NO  (.{32})", said)}
    assert no - {"accuracy above 57 %"} == {"zip with the notebook as run"} and "File > Download" in said, no
    print("all cells ran; all files are there")


if __name__ == "__main__":
    main()
