"""The notebook as it is delivered, with its outputs; run.py; and which file the notebook takes for its own."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE

from run import NOTEBOOK, execute, load_definitions, override, setting, tagged

ALLOWED = {"torch", "torchvision", "einops", "numpy", "pandas", "matplotlib", "tqdm", *sys.stdlib_module_names}
MACHINE_PATH = re.compile(r"(?m)(^|[^A-Za-z0-9_.])/(home|root|tmp|work|Users|usr)/")
OURS, ANOTHER = ["a = 1", "b = 2", "export()"], ["x", "b = 2", "y", "z"]


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def printed(notebook, *ids):
    """All text of the outputs of these cells, or of all, pictures aside."""
    outputs = [o for c in code_cells(notebook) if not ids or c.id in ids for o in c.outputs]
    return "\n".join(text for o in outputs for text in (o.get("text", ""), *o.get("traceback", []), *(
        content for kind, content in o.get("data", {}).items() if kind.startswith("text/"))))


def test_executed_in_order_without_error_portable_and_all_verdicts_are_yes(notebook):
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [c.id for c in cells for o in c.outputs if o.output_type == "error"]
    assert re.findall(r"(?m)^ *(yes|NO|-)  ", printed(notebook, "export_run")) == 11 * ["yes"]
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and "widget-view" not in NOTEBOOK.read_text("utf-8")
    assert "widgets" not in notebook.metadata and NOTEBOOK.stat().st_size < 3_000_000
    assert not MACHINE_PATH.findall("\n".join([printed(notebook), *(c.source for c in notebook.cells)]))


def test_budgets(notebook):
    code, order = code_cells(notebook), [c.id for c in notebook.cells]
    lines = {c.id: sum(bool(line.strip()) for line in c.source.splitlines()) for c in code}
    assert len(notebook.cells) <= 120 and sum(lines.values()) <= 1200
    assert sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown") <= 4500
    assert sum(lines.get(name, 0) for name in order[:order.index("ffn")]) <= 300
    assert {c.id: n for c in code if (n := len(c.source.splitlines())) > 45} == {}


def test_title_and_readme_have_the_printed_figures(notebook, hw):
    both, single = re.findall(r"(?m)^(?:test accuracy|from a single view of each) (\S+ %)", printed(notebook, "test"))
    size, numbers = (ROOT / hw.PT_FILE).stat().st_size, sum(p.numel() for p in hw.myViT().parameters())
    assert f"{hw.PT_FILE} has {size:,}" in printed(notebook, "size_run")
    for text in (notebook.cells[0].source, "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:30])):
        assert re.findall(r"\d\d\.\d\d %", text)[:2] == [both, single]
        assert f"{size:,} bytes" in text and f"{numbers:,} parameters" in text


def test_delivered_files_are_in_form_and_agree(hw, sample, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], hw.unpack.__name__, hw.unpack, raising=False)
    model = torch.load(ROOT / hw.PT_FILE, weights_only=False)
    claimed, found = hw.read_csv(ROOT / hw.CSV_FILE, 10_000, 10), hw.predict(
        model, torch.from_numpy(sample[2])).argmax(dim=1)
    assert (found == claimed[np.load(SAMPLE)["test_rows"]]).sum() >= 29                # of 30: rounding


def test_parameters_tags_and_imports(notebook, hw):
    (parameters,), (_,) = tagged(notebook, "parameters"), tagged(notebook, "export")
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(parameters.source).body}
    assert " ".join(values) == ("STUDENT_ID SEED DATASET DATA_DIR CHECKPOINT_DIR RETRAIN EPOCHS TRAIN_LIMIT HELD_OUT "
                                "MIRROR DATA_SHA256 DOWNLOAD_MINUTES")
    assert values["HELD_OUT"] == 0 and values["RETRAIN"] is False and values["EPOCHS"] is None
    for cell in code_cells(notebook):
        assert {*re.findall(r"(?m)^ *(?:import|from) (\w+)", cell.source)} <= ALLOWED, cell.id
        assert hw.defines(cell.source) == ("definitions" in cell.metadata.get("tags", [])), cell.id


@pytest.mark.parametrize("images, epochs", [(50_000, 150), (60_000, 125), (100, 750)])
def test_every_data_set_gets_as_many_steps(notebook, hw, images, epochs):
    source = next(c.source for c in notebook.cells if c.id == "training").split("colours =")[0]
    exec(source, scope := vars(hw) | dict(train_images=range(images)))
    assert scope["hyperparameters"].epochs == epochs


def test_settings_replace_the_literal_only_and_an_unknown_one_and_lost_tags_are_refused(tmp_path):
    for value in ("it's", r"C:\data", "\\1", "a\nb", "a # b", None, 1e-3):
        changed = override('A = "x"  # a name\nAB = 1  # A = 2\n', dict(A=value))
        assert [ast.literal_eval(s.value) for s in ast.parse(changed).body] == [value, 1] and "# a name\n" in changed
    assert [*map(setting, ["A=1", "A=None", "A=B1", "A=x=y"])] == [("A", 1), ("A", None), ("A", "B1"), ("A", "x=y")]
    path = shutil.copy(NOTEBOOK, tmp_path / "copy.ipynb")
    with pytest.raises(ValueError, match="STUDENT is not a setting"):
        execute(path, dict(STUDENT="B1"))
    assert path.read_bytes() == NOTEBOOK.read_bytes()
    path.write_text(re.sub(r'"tags": \[[^]]*\]', '"tags": []', NOTEBOOK.read_text("utf-8")), "utf-8")
    for read in (load_definitions, lambda path: execute(path, {})):
        with pytest.raises(ValueError, match=r"tags were lost.* `parameters` .* `definitions` .* `export` "):
            read(path)


def test_a_zip_of_other_files_or_of_cells_that_were_not_run_is_told(hw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [dict(cell_type="code", source=[source], execution_count=i) for i, source in enumerate(OURS, 1)]
    (notebook := Path("saved.ipynb")).write_text(json.dumps(dict(cells=cells)))
    for path in (hw.PT_FILE, hw.CSV_FILE):
        path.write_bytes(b"as packed")
    hw.ZIP_FILE.write_bytes(content := hw.zipped(notebook))
    assert hw.zip_differs(["", *OURS]) is None and hw.zip_differs(["", OURS[1], *OURS]) is None  # a cell, then Run All
    assert "its code cell 2 is not what was run last" in hw.zip_differs(["", OURS[0], "b = 3", OURS[2]])
    at = 30 + len(hw.NOTEBOOK_NAME)  # where the notebook's deflate stream begins
    for other, why in ((hw.zipped(None), "lacks a file"), (content[:-9], "damaged"),
                       (content[:at] + b"\xff" + content[at + 1:], "damaged")):
        hw.ZIP_FILE.write_bytes(other)
        assert why in hw.zip_differs(["", *OURS])
    hw.ZIP_FILE.write_bytes(content)
    hw.CSV_FILE.write_bytes(b"changed")
    assert f"another {hw.CSV_FILE}" in hw.zip_differs(["", *OURS])


@pytest.mark.parametrize("told, files, found", [
    ({}, {"DL_HW3_StudentID.ipynb": OURS}, "DL_HW3_StudentID.ipynb"), ({}, {"DL_HW3_StudentID.ipynb": ANOTHER}, None),
    ({"jupyter": "work/renamed.ipynb"}, {"renamed.ipynb": OURS, "DL_HW3_StudentID.ipynb": ANOTHER}, "renamed.ipynb"),
    ({"jupyter": "homework.md"}, {"homework.md": OURS}, None),
    ({"vscode": "C:/homework/renamed.ipynb"}, {"renamed.ipynb": OURS}, "renamed.ipynb")])
def test_the_notebooks_file_is_found_and_no_other(hw, tmp_path, monkeypatch, told, files, found):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JPY_SESSION_NAME", told.get("jupyter", ""))
    monkeypatch.setattr(hw, "__vsc_ipynb_file__", told.get("vscode"), raising=False)
    for name, cells in files.items():
        cells = [dict(cell_type="code", source=[source]) for source in cells]
        (tmp_path / name).write_text(json.dumps(dict(cells=cells)))
    assert (path := hw.find_notebook(["", *OURS])) == found or path.name == found
