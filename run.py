"""Execute the notebook in place, as Run All and Save would in Jupyter; or load the cells that only define.

    python run.py [NAME=VALUE ...] [--notebook FILE]
    python run.py --show FILE

NAME=VALUE replaces a setting of the cell tagged `parameters` for this run: the saved notebook keeps its literals, the
one in the zip has them as they were run. Values are Python literals; anything else is taken as a string. --show prints
a notebook's cells without outputs, for diffs.
"""

import argparse
import ast
import os
import re
import signal
import sys
import time
import types
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"  # steps take up to a quarter less
NOTEBOOK = Path(__file__).resolve().parent / "DL_HW3_StudentID.ipynb"


def tagged(notebook: nbformat.NotebookNode, *tags: str) -> list[nbformat.NotebookNode]:
    """The code cells that carry one of the tags, in order; ValueError if there is none."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and {*tags} & {*c.metadata.get("tags", [])}]
    if not cells:
        raise ValueError(f"no cell is tagged `{tags[0]}`: the tags were lost. Take the original notebook, or tag "
                         "its cells again: `parameters` the settings, `definitions` what defines, `export` the last")
    return cells


def override(source: str, settings: dict) -> str:
    """Replace the literals of a cell of assignments; ValueError for a name that it does not assign."""
    for name, value in settings.items():
        line = f"{name} = {value!r}  "
        source, found = re.subn(rf"(?m)^{re.escape(name)} = [^#\n]*", lambda _, line=line: line, source)
        if not found:
            raise ValueError(f"{name} is not a setting of the notebook's parameters cell")
    return source


def load_definitions(path: Path = NOTEBOOK, name: str = "homework", **settings) -> types.ModuleType:
    """Run the cells tagged `definitions`, in order, in a new module of this name; settings replace parameters.

    A cell that papermill has injected counts, too.
    """
    cells = tagged(nbformat.read(path, as_version=4), "definitions", "injected-parameters")
    module = types.ModuleType(name)
    sys.modules[name] = module  # pickle and dataclasses look their classes' module up
    for cell in cells:
        is_parameters = "parameters" in cell.metadata.tags
        source = override(cell.source, settings) if is_parameters else cell.source
        exec(compile(source, f"{Path(path).name}, cell {cell.id}", "exec"), module.__dict__)
    return module


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write to a temporary file, then move it into place."""
    nbformat.write(notebook, temporary := path.with_suffix(".tmp"))
    for attempt in range(9):
        try:
            return os.replace(temporary, path)
        except PermissionError:  # a virus scanner or a cloud drive may hold the notebook for a moment
            if attempt == 8:
                raise
            time.sleep(0.25)


def execute(path: Path, settings: dict) -> None:
    """Run all cells in the notebook's folder and save their outputs after each; then renew the notebook in the zip.

    Raises CellExecutionError, with the outputs so far saved, if a cell fails.
    """
    path = Path(path).resolve()
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    literals, parameters.source = parameters.source, override(parameters.source, settings)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None

    def after_cell(cell, cell_index, execute_reply):
        save(notebook, path)  # the export cell compares the saved file with what was run
        text = "".join(o.get("text", "") for o in cell.get("outputs", []) if o.output_type == "stream")
        if text:
            print(text.rstrip(), flush=True)

    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}}, on_cell_executed=after_cell,
    )
    environment = {"GLIBC_TUNABLES": KEEP_MEMORY, **os.environ, "JPY_SESSION_NAME": str(path),
                   "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    started = time.time()
    try:
        client.execute(env=environment)
        save(notebook, path)
        renew_zip(path, started)
    finally:
        parameters.source = literals
        save(notebook, path)


def renew_zip(path: Path, since: float) -> None:
    """Pack the saved notebook again if the export cell packed it: the cell's own output could not be in the zip."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        homework = load_definitions(path, "homework_to_pack")
        if homework.ZIP_FILE.stat().st_mtime >= since:
            homework.write_file(homework.ZIP_FILE, homework.zipped(path))
    finally:
        os.chdir(before)


def setting(text: str) -> tuple[str, object]:
    """NAME=VALUE from the command line."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK)
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the cells of this notebook, without outputs")
    arguments = parser.parse_args()
    if arguments.show:
        cells = nbformat.read(arguments.show, as_version=4).cells
        sys.exit(print("\n\n".join(f"# %% [{cell.cell_type}] {cell.id}\n{cell.source}" for cell in cells)))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a closed terminal; not nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        execute(arguments.notebook, dict(arguments.settings))
    except (CellExecutionError, ValueError) as error:
        sys.exit(str(error))
    except AssertionError:  # nbclient's, once a signal has stopped its kernel
        sys.exit("stopped; a training that had begun goes on with the same command")
