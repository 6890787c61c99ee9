"""Open the notebook in JupyterLab in a headless browser and run all cells, as a student would. Not part of `make test`.

    pip install jupyterlab playwright && python tests/as_in_jupyterlab.py [--chromium PATH] [NAME=VALUE ...]

Works in a scratch copy with the trained weights; settings replace literals in it. Runs all cells twice, saves, as
Ctrl+S does, and runs the export once more. Fails if a cell ends with an error or is not run, if a file is missing, or
if a verdict is no. Leaves jupyterlab.png, what was seen, in the working folder.
"""

import argparse
import os
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
from run import override, setting, tagged  # noqa: E402

NAME = "DL_HW3_StudentID.ipynb"


def scratch_copy(folder: Path, settings: dict) -> int:
    """Put the notebook, without outputs, the weights and the data into the folder; returns the export cell's index."""
    notebook = nbformat.read(ROOT / NAME, as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    parameters.source = override(parameters.source, settings)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NAME)
    shutil.copytree(ROOT / "checkpoints" / "CIFAR10", folder / "checkpoints" / "CIFAR10")
    (folder / "data").symlink_to((ROOT / "data").resolve())
    return notebook.cells.index(*tagged(notebook, "export"))


def serve(folder: Path) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", "--IdentityProvider.token=",
               "--LabApp.expose_app_in_browser=True", "--allow-root", f"--ServerApp.root_dir={folder}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env=os.environ)
    url = f"http://127.0.0.1:{port}/lab/tree/{NAME}"
    for _ in range(120):
        try:
            urllib.request.urlopen(url)
            return server, url
        except OSError:
            time.sleep(0.5)
    server.kill()
    raise RuntimeError("JupyterLab did not start within a minute")


def run_all(url: str, export: int, chromium: str | None, picture: Path) -> None:
    """Run all cells, then the one at the index `export`, in the notebook that JupyterLab shows at this address."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.set_default_timeout(3_600_000)
        page.goto(url)
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
        execute = "id => window.jupyterapp.commands.execute(id)"
        for _ in range(2):
            page.evaluate(execute, "notebook:run-all-cells")
        page.evaluate(execute, "docmanager:save")
        page.evaluate("i => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i }", export)
        page.evaluate(execute, "notebook:run-cell")
        page.evaluate(execute, "docmanager:save")
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        index = scratch_copy(folder, dict(a.settings))
        server, url = serve(folder)
        try:
            run_all(url, index, a.chromium, Path("jupyterlab.png"))
        finally:
            server.terminate()
            server.wait()
        notebook = nbformat.read(folder / NAME, as_version=4)
        code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
        errors = [f"{c.id}: {o.ename}: {o.evalue}" for c in code for o in c.outputs if o.output_type == "error"]
        unrun = [c.id for c in code if not c.execution_count]
        student = dict(a.settings).get("STUDENT_ID", "StudentID")
        missing = [n for n in (f"{student}_submission.pt", f"{student}_submission.csv", f"{student}_HW3.zip")
                   if not (folder / n).is_file()]
        (export,) = tagged(notebook, "export")
        said = "".join(o.get("text", "") for o in export.outputs)
        print(said)
    if errors or unrun or missing or "yes  Part 7" not in said or " NO  " in said:
        sys.exit(f"errors: {errors}\nnot run: {unrun}\nmissing: {missing}")
    print("all cells ran; all files are there")


if __name__ == "__main__":
    main()
