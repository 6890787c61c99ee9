import ast
import json
import os
import re
import shutil
import sys
import zipfile

import nbformat
import pytest
import torch
from conftest import ROOT, SAMPLE, SAMPLE_SHA256
from nbclient.exceptions import CellExecutionError
from test_data import write_fashion_mnist

from run import execute, override, setting, tagged

NOTEBOOK = ROOT / "DL_HW3_StudentID.ipynb"
ALLOWED = {"torch", "torchvision", "einops", "numpy", "pandas", "matplotlib", "tqdm"}
QUICK = dict(EPOCHS=1, HELD_OUT=10, DATA_SHA256=SAMPLE_SHA256, STUDENT_ID="B12345678")
MACHINE_PATH = re.compile(r"(?m)(^|[^A-Za-z0-9_.])/(home|root|tmp|work|Users|usr)/")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def texts(cell):
    """All text of a cell's outputs, pictures aside."""
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        yield "\n".join(output.get("traceback", []))
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                yield content if isinstance(content, str) else json.dumps(content)


def printed(notebook, cell_id):
    (cell,) = [c for c in notebook.cells if c.id == cell_id]
    return "\n".join(texts(cell))


def assert_executed(notebook):
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [c.id for c in cells for o in c.outputs if o.output_type == "error"]


# as delivered

def test_delivered_notebook_is_executed_in_order_without_error(notebook):
    assert_executed(notebook)
    assert "NOT UP TO DATE" not in printed(notebook, "export_run")
    assert "NOT COMPLETE" not in printed(notebook, "export_run")


def test_each_figure_has_a_text_for_those_who_do_not_see_it(notebook):
    figures = [c for c in code_cells(notebook) if any("image/png" in o.get("data", ()) for o in c.outputs)]
    assert len(figures) > 10
    assert [c.id for c in figures if len(c.metadata.get("alt", "")) < 30] == []


def test_delivered_verdicts_are_all_yes(notebook):
    (export,) = tagged(notebook, "export")
    verdicts = re.findall(r"(?m)^ *(yes|NO)  ", "".join(texts(export)))
    assert len(verdicts) >= 9 and set(verdicts) == {"yes"}


def test_delivered_notebook_is_valid_and_portable(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert "widget-view" not in NOTEBOOK.read_text("utf-8")
    assert NOTEBOOK.stat().st_size < 3_000_000


def test_no_machine_path(notebook):
    for cell in notebook.cells:
        for text in (cell.source, *texts(cell)):
            assert not MACHINE_PATH.search(text), f"{cell.id}: {MACHINE_PATH.search(text)}"


def test_no_placeholder_is_left(notebook):
    texts = {c.id: c.source + c.metadata.get("alt", "") for c in notebook.cells}
    for name in ("README.md", "benchmarks/README.md"):
        texts[name] = (ROOT / name).read_text("utf-8")
    assert not [name for name, text in texts.items() if re.search(r"@[A-Z0-9_]+@", text)]


def test_imports(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert {name.split(".")[0] for name in names} <= ALLOWED | set(sys.stdlib_module_names), cell.id


def test_no_ready_made_attention(notebook):
    for cell in code_cells(notebook):
        for banned in ("MultiheadAttention", "nn.Transformer", "F.scaled_dot_product_attention"):
            assert banned not in cell.source, cell.id


def test_cells_fit_a_screen(notebook):
    assert {c.id: n for c in code_cells(notebook) if (n := len(c.source.splitlines())) > 60} == {}


def test_parameters_are_literals(notebook):
    (parameters,) = tagged(notebook, "parameters")
    names = []
    for statement in ast.parse(parameters.source).body:
        (target,) = statement.targets
        ast.literal_eval(statement.value)
        names.append(target.id)
    assert {"STUDENT_ID", "SEED", "DATA_DIR", "CHECKPOINT_DIR", "RETRAIN"} <= set(names)
    assert parameters in tagged(notebook, "definitions")


def test_tags(notebook):
    assert len(tagged(notebook, "export")) == 1
    for kind in (ast.ClassDef, ast.FunctionDef):
        for cell in code_cells(notebook):
            if any(isinstance(node, kind) for node in ast.parse(cell.source).body):
                assert "definitions" in cell.metadata.get("tags", []), f"{cell.id} defines, and is not tagged so"


# run.py

def test_override_replaces_the_literal_only():
    source = 'A = "x"  # a name\nB = None\nAB = 1  # A = 2\n'
    changed = override(source, dict(A="it's", B=3))
    assert [ast.literal_eval(s.value) for s in ast.parse(changed).body] == ["it's", 3, 1]
    assert "# a name" in changed and changed.endswith("AB = 1  # A = 2\n")


@pytest.mark.parametrize("value", [r"C:\data", "\\1", "a\nb", "a # b", None, 1e-3])
def test_override_takes_any_literal(value):
    changed = override("A = 1  # a name\n", dict(A=value))
    assert ast.literal_eval(ast.parse(changed).body[0].value) == value and changed.count("\n") == 1


def test_unknown_setting_is_refused(tmp_path):
    path = tmp_path / NOTEBOOK.name
    shutil.copy(NOTEBOOK, path)
    with pytest.raises(ValueError, match="STUDENT is not a setting"):
        execute(path, dict(STUDENT="B12345678"))
    assert path.read_bytes() == NOTEBOOK.read_bytes()


@pytest.mark.parametrize("text, value", [("A=1", 1), ("A=None", None), ("A=B12345678", "B12345678"), ("A=x=y", "x=y"),
                                         ("A='1'", "1")])
def test_settings_of_the_command_line(text, value):
    assert setting(text) == ("A", value)


# executed

def prepare(folder):
    (folder / "data").mkdir()
    shutil.copy(SAMPLE, folder / "data")
    return shutil.copy(NOTEBOOK, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The notebook run twice in one folder: the folder, and each time the saved notebook and the files' contents."""
    folder = tmp_path_factory.mktemp("homework")
    path = prepare(folder)
    runs = []
    for _ in range(2):
        execute(path, QUICK, quiet=True)
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        runs.append((nbformat.read(path, as_version=4), files))
    return folder, runs


@pytest.mark.parametrize("run", [0, 1], ids=["fresh", "with its checkpoint"])
def test_notebook_runs_top_to_bottom(runs, run):
    executed, files = runs[1][run]
    assert_executed(executed)
    assert sorted(files) == ["B12345678_HW3.zip", "B12345678_submission.csv", "B12345678_submission.pt", NOTEBOOK.name]
    assert len(files["B12345678_submission.csv"].splitlines()) == 31
    assert sum("image/png" in o.get("data", {}) for c in code_cells(executed) for o in c.outputs) >= 7
    for cell in executed.cells:
        assert not any(MACHINE_PATH.search(text) for text in texts(cell)), cell.id


def test_second_run_takes_the_trained_weights(runs):
    folder, ((first, files), (second, files_again)) = runs
    assert "trained weights from" not in printed(first, "training")
    assert "trained weights from" in printed(second, "training")
    assert [p.suffix for p in (folder / "checkpoints" / "CIFAR10").iterdir()] == 8 * [".pt"]
    assert files["B12345678_submission.csv"] == files_again["B12345678_submission.csv"]


@pytest.mark.parametrize("run", [0, 1], ids=["fresh", "with its checkpoint"])
def test_zip_is_flat_and_holds_the_executed_notebook(runs, run, tmp_path):
    executed, files = runs[1][run]
    (tmp_path / "homework.zip").write_bytes(files["B12345678_HW3.zip"])
    with zipfile.ZipFile(tmp_path / "homework.zip") as archive:
        names = ["DL_HW3_B12345678.ipynb", "B12345678_submission.csv", "B12345678_submission.pt"]
        assert sorted(archive.namelist()) == sorted(names)
        assert archive.testzip() is None
        for name in names[1:]:
            assert archive.read(name) == files[name]
        packed = nbformat.reads(archive.read(names[0]).decode("utf-8"), as_version=4)
    (literals,), (used,) = (tagged(notebook, "parameters") for notebook in (executed, packed))
    assert used.source == override(literals.source, QUICK)  # as it was run
    used.source = literals.source
    assert packed == executed
    assert_executed(packed)


def test_export_verified_the_zip(runs):
    for executed, _ in runs[1]:
        (export,) = tagged(executed, "export")
        output = "".join(texts(export))
        assert "B12345678_HW3.zip" in output and "NOT UP TO DATE" not in output and "NOT COMPLETE" not in output
        assert re.search(r"(?m)^ *yes +csv agrees with the model +100\.00% of 30 rows$", output)


def test_retrain_trains_anew_and_puts_the_weights_in_place(runs):
    folder, _ = runs
    checkpoints = folder / "checkpoints" / "CIFAR10"
    before = {p.name: p.stat().st_mtime_ns for p in checkpoints.iterdir()}
    execute(folder / NOTEBOOK.name, QUICK | dict(RETRAIN=True), quiet=True)
    executed = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    for cell in ("training", "harder", "by_bits", "final", "final_bits"):
        assert "trained weights from" not in printed(executed, cell)
    after = {p.name: p.stat().st_mtime_ns for p in checkpoints.iterdir()}
    assert after.keys() == before.keys() and all(after[name] > before[name] for name in before)


def test_settings_of_a_run_leave_the_literals(runs, notebook):
    for executed, _ in runs[1]:
        assert [c.source for c in executed.cells] == [c.source for c in notebook.cells]


def test_another_data_set_runs_top_to_bottom_and_leaves_cifar10s_files_alone(tmp_path, sample):
    path = prepare(tmp_path)
    write_fashion_mnist(tmp_path / "data", sample)
    pt = tmp_path / "B12345678_submission.pt"
    pt.write_bytes(b"CIFAR-10's")
    execute(path, QUICK | dict(DATASET="FashionMNIST", BITS=8, TRAIN_ON_ALL=False), quiet=True)
    executed = nbformat.read(path, as_version=4)
    assert_executed(executed)
    assert "trained weights from" in printed(executed, "final")  # those of the rehearsal
    assert pt.read_bytes() == b"CIFAR-10's"
    assert len((tmp_path / "B12345678_FashionMNIST_submission.csv").read_text().splitlines()) == 31
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["FashionMNIST"]
    (export,) = tagged(executed, "export")
    assert re.search(r"(?m)^ *yes +csv agrees with the model +100\.00% of 30 rows$", "".join(texts(export)))


@pytest.mark.parametrize("counts, held", [((1000, 1000, 100), 20), ((40, 4), 1), ((9000, 8000), 1600)])
def test_of_an_unbalanced_data_set_a_fifth_of_the_smallest_class_is_held_out(hw, notebook, counts, held):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8)
    (cell,) = (c for c in notebook.cells if c.id == "data")
    names = vars(hw) | dict(
        DATASET="pictures", load_dataset=lambda: ((images, labels, images, labels), "abc"[:len(counts)]))
    exec(cell.source, names)
    assert labels[names["held"]].bincount().tolist() == [held] * len(counts)


def test_a_cell_that_fails_is_saved_and_said(tmp_path):
    path = prepare(tmp_path)
    environment = dict(os.environ)
    with pytest.raises(CellExecutionError, match="held_out is 7"):
        execute(path, QUICK | dict(HELD_OUT=7), quiet=True)
    saved = nbformat.read(path, as_version=4)
    failed = [c.id for c in saved.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert failed == ["data"]
    assert [c.id for c in code_cells(saved) if c.execution_count][-1] == "data"
    assert "HELD_OUT = 5000" in tagged(saved, "parameters")[0].source
    assert sorted(p.name for p in tmp_path.iterdir()) == [NOTEBOOK.name, "data"]
    assert dict(os.environ) == environment
