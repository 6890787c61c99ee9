"""Run the notebook as Colab would: no file, an empty folder, maybe older Python and torch. Not part of `make test`.

    python tests/as_in_colab.py [--python PATH] [NAME=VALUE ...]

PATH is the interpreter of an environment that holds what the notebook imports, and ipykernel; by default this one. With
no trained weights there it trains, for one epoch of 2,000 images unless the settings say otherwise. Fails if a cell
ends with an error, or the .pt, the .csv or the zip is missing, or the export does not say what to add by hand.
"""

import argparse
import json
import os
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
    a = parser.parse_args()
    notebook = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    settings = dict(EPOCHS=1, TRAIN_LIMIT=2000) | dict(a.settings)
    parameters.source = override(parameters.source, settings)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "content")
        content.mkdir()
        (content / "data").symlink_to((ROOT / "data").resolve())
        kernel = Path(folder, "kernels", "other")
        kernel.mkdir(parents=True)
        command = [a.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps(dict(argv=command, display_name="other", language="python")))
        os.environ["JUPYTER_PATH"] = folder
        os.environ.pop("JPY_SESSION_NAME", None)
        resources = dict(metadata=dict(path=str(content)))
        NotebookClient(notebook, timeout=None, kernel_name="other", resources=resources).execute()
        files = sorted(p.name for p in content.iterdir() if p.is_file())
    (export,) = tagged(notebook, "export")
    said = "".join(o.get("text", "") for o in export.outputs)
    print(said)
    student = settings.get("STUDENT_ID", "StudentID")
    assert files == [f"{student}_HW3.zip", f"{student}_submission.csv", f"{student}_submission.pt"], files
    assert "NOT COMPLETE" in said and "by hand" in said
    print("all cells ran; all files are there")


if __name__ == "__main__":
    main()
