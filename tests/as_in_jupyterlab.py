"""Open the notebook in JupyterLab in a headless browser and run all cells, as a student would. Not part of `make test`.

    pip install jupyterlab playwright && python tests/as_in_jupyterlab.py [--chromium PATH]

Works in a scratch copy with the trained weights. Runs all cells twice, saves, as Ctrl+S does, and runs the export once
more. Fails if a cell ends with an error or is not run, or if a verdict is no.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import tagged  # noqa: E402

NAME = "DL_HW3_StudentID.ipynb"


def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", "--IdentityProvider.token=",
               "--LabApp.expose_app_in_browser=True", "--allow-root", f"--ServerApp.root_dir={folder}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    url = f"http://127.0.0.1:{port}/lab/tree/{NAME}"
    while server.poll() is None:
        try:
            urllib.request.urlopen(url)
            return server, url
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("JupyterLab did not start")


def run_all(url: str, export: int, chromium: str | None) -> None:
    """Run all cells, then the one at the index `export`, in the notebook that JupyterLab shows at this address."""
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(3_600_000)
        page.goto(url)
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        notebook, execute = "window.jupyterapp.shell.currentWidget", "id => window.jupyterapp.commands.execute(id)"
        page.wait_for_function(f"{notebook}.sessionContext.session?.kernel?.status === 'idle'")
        for command in ("notebook:run-all-cells", "notebook:run-all-cells", "docmanager:save"):
            page.evaluate(execute, command)
        page.evaluate(f"i => {{ {notebook}.content.activeCellIndex = i }}", export)
        for command in ("notebook:run-cell", "docmanager:save"):
            page.evaluate(execute, command)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
a = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    notebook = nbformat.read(ROOT / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, Path(folder, NAME))
    shutil.copytree(ROOT / "checkpoints" / "CIFAR10", Path(folder, "checkpoints", "CIFAR10"))
    Path(folder, "data").symlink_to((ROOT / "data").resolve())
    server, url = serve(Path(folder))
    try:
        run_all(url, notebook.cells.index(*tagged(notebook, "export")), a.chromium)
    finally:
        server.terminate()
        server.wait()
    notebook = nbformat.read(Path(folder, NAME), as_version=4)
code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
errors = [f"{c.id}: {o.ename}: {o.evalue}" for c in code for o in c.outputs if o.output_type == "error"]
unrun = [c.id for c in code if not c.execution_count]
print(said := "".join(o.get("text", "") for c in tagged(notebook, "export") for o in c.outputs))
if errors or unrun or "yes  zip with the notebook as run" not in said or " NO  " in said:
    sys.exit(f"errors: {errors}\nnot run: {unrun}")
