"""Run the notebook as Colab would: no file of it, maybe older Python and torch. Not part of `make test`.

    python tests/as_in_colab.py [--python PATH] [--pt FILE]

PATH is the interpreter of an environment that holds what the notebook imports, and ipykernel. FILE is a .pt to upload
beside the notebook; without it the notebook trains, for one epoch of 2,000 images.
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
from run import load_definitions, override, tagged  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--python", default=sys.executable)
parser.add_argument("--pt", type=Path)
a = parser.parse_args()
hw = load_definitions()
notebook = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4)
(parameters,), (export,) = tagged(notebook, "parameters"), tagged(notebook, "export")
if not a.pt:
    parameters.source = override(parameters.source, dict(EPOCHS=1, TRAIN_LIMIT=2000))
with tempfile.TemporaryDirectory() as folder:
    kernel, content = Path(folder, "kernels", "other"), Path(folder, "content")
    kernel.mkdir(parents=True)
    content.mkdir()
    (content / "data").symlink_to((ROOT / "data").resolve())
    if a.pt:
        shutil.copy(a.pt, content / hw.PT_FILE)
    command = [a.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps(dict(argv=command, display_name="other", language="python")))
    os.environ["JUPYTER_PATH"] = folder
    os.environ.pop("JPY_SESSION_NAME", None)
    NotebookClient(notebook, kernel_name="other", resources=dict(metadata=dict(path=str(content)))).execute()
    assert not a.pt or (content / hw.PT_FILE).read_bytes() == a.pt.read_bytes(), "the .pt was changed"
    assert all((content / name).is_file() for name in (hw.PT_FILE, hw.CSV_FILE, hw.ZIP_FILE))
print(said := "".join(o.get("text", "") for o in export.outputs))
no = {line.strip() for line in re.findall(r"(?m)^ *NO  (.{32})", said)} - {"accuracy above 57 %"}
assert no == {"zip with the notebook as run"} and "File > Download" in said, no
