"""What Run All does with what lies beside the notebook: where weights come from, what is written; the journeys."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import pytest
import tiny
import torch
from conftest import SAMPLE, SAMPLE_SHA256
from nbclient import NotebookClient
from test_notebook import NOTEBOOK, printed

from run import execute, load_definitions, override, tagged

PT, CSV, ZIP = FILES = "B1_submission.pt", "B1_submission.csv", "B1_HW3.zip"
SETTINGS = dict(STUDENT_ID="B1", EPOCHS=1, DATA_DIR=str(SAMPLE.parent), DATA_SHA256=SAMPLE_SHA256)


def state(folder="."):
    """{name: (content, time of its last change)} of all files below a folder."""
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in Path(folder).rglob("*.*")}


@pytest.fixture
def run_cells(tmp_path, monkeypatch, capsys):
    """Run the cells that decide, with a tiny network, in an empty folder: (epochs that are trained, what is said)."""
    monkeypatch.chdir(tmp_path)
    cells = {c.id: c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells}
    known = torch.serialization.get_safe_globals()
    def run_cells(killed_in=None, **settings):
        torch.serialization.clear_safe_globals()                                          # as in a new process
        hw = load_definitions(name="homework_of_a_journey", **SETTINGS | dict(EPOCHS=2) | settings)
        tiny.no_clock(setattr, hw)
        killed, init = mock.Mock(side_effect=KeyboardInterrupt), hw.myViT.__init__
        hw.train_epoch = mock.Mock(side_effect=tiny.at_call(killed_in, hw.train_epoch, killed))
        hw.myViT.__init__ = lambda self, *args, **changed: init(self, *args, **tiny.MODEL | changed)
        hw.verify_in_fresh_process, hw.__file__ = mock.Mock(return_value="verified"), __file__
        try:
            for name in ("data", "training", "test", "csv", "export_run"):
                exec(cells[name], hw.__dict__)
        except (KeyboardInterrupt, ValueError) as error:
            print(error)
        return [call.args[5] for call in hw.train_epoch.call_args_list], capsys.readouterr().out
    yield run_cells
    torch.serialization.add_safe_globals(known)


TABLE = {  # what is there: the epochs that are trained, and with RETRAIN, and what is said
    "nothing": ([1, 2], [1, 2], "finished at the start: 0"), "unfinished": ([2], [2], "finished at the start: 1"),
    "finished": ([], [1, 2], "trained weights from checkpoints/CIFAR10/[0-9a-f]{8}.pt: one training, 2 epochs"),
    "submission, alone": ([], [1, 2], f"weights from {PT}, .* as it is\n"),
    "submission, older": ([], [1, 2], "left as it is.*other settings; RETRAIN = True trains with these"),
    "unfinished, and a submission, older": ([2], [2], "finished at the start: 1"),
    "damaged": ([], [1, 2], f"{PT} cannot be read, and stays as it is: .*RETRAIN = True"),
    "another's": ([], [1, 2], f"there is B2_submission.pt, but no {PT}: rename it, .* to 'B2' .*, or RETRAIN = True"),
    "a second download": ([], [1, 2], rf"there is B1_submission \(1\).pt, but no {PT}: rename it")}


def leave(what, run_cells):
    """Put into the folder what is there before the run."""
    if "unfinished" in what:
        run_cells(killed_in=2)
    if what == "finished" or "submission" in what:
        run_cells(SEED=int("older" in what))
        finished, unwanted = Path().glob("checkpoints/*/????????.pt"), (CSV, ZIP) * ("alone" in what)
        for path in map(Path, FILES if what == "finished" else [*finished, *unwanted]):
            path.unlink()
    left = {"damaged": PT, "another's": "B2_submission.pt", "a second download": "B1_submission (1).pt"}
    Path(left.get(what, "B1_SVHN_submission.pt")).write_bytes(b"?")
    if what == "another's":
        Path("B2_CIFAR100_submission.pt").write_bytes(b"?")


@pytest.mark.parametrize("what, retrain", [(what, retrain) for what in TABLE for retrain in (False, True)])
def test_where_weights_come_from_and_what_is_written(run_cells, what, retrain):
    leave(what, run_cells)
    before = state()
    epochs, said, after = *run_cells(RETRAIN=retrain), state()
    assert epochs == TABLE[what][retrain] and (retrain or re.search(TABLE[what][2], said))
    if not retrain and re.match("damaged|another's|a second|submission", what):  # nothing is touched
        assert after == after | before and {*after} == {*before, *(FILES * ("submission" in what))}
    else:
        replaced = {f"{n}.previous": before[n][0] for n in before if n in FILES and before[n] != after[n]}
        assert {name: content for name, (content, _) in after.items() if name.endswith("previous")} == replaced
        assert {*FILES} <= {*after}


def test_a_pt_of_other_classes_is_refused(hw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hw.PT_FILE.write_bytes(hw.saved(hw.Packed(hw.pack(hw.myViT(4, **tiny.MODEL), ()))))
    with pytest.raises(ValueError, match="has 4 classes, the data 10; RETRAIN = True"):
        hw.trained_or_submitted(hw.myViT(**tiny.MODEL), tiny.images_and_labels(), None, tiny.hyperparameters(hw))


def failed(text):
    return [line.strip() for line in re.findall(r"(?m)^ *(?:NO|-)  (.{32})", text)]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The journey of who starts with the notebook alone: its folder."""
    path, notebook = tmp_path_factory.mktemp("empty") / NOTEBOOK.name, nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_code_cell("%matplotlib inline"))
    nbformat.write(notebook, path)
    execute(path, SETTINGS)
    assert failed(printed(nbformat.read(path, as_version=4), "export_run")) == ["accuracy above 57 %"]
    return path.parent


def test_empty(empty):
    assert sorted(p.name for p in empty.iterdir()) == sorted([*FILES, NOTEBOOK.name, "checkpoints"])
    with zipfile.ZipFile(empty / ZIP) as archive:
        packed = nbformat.reads(archive.read("DL_HW3_B1.ipynb").decode(), as_version=4)
    assert failed(printed(packed, "export_run")) == ["accuracy above 57 %"]
    assert "EPOCHS = 1 " in tagged(packed, "parameters")[0].source


def test_validation_images_are_not_trained_on_and_the_limit_holds():
    hw = load_definitions(name="homework_of_sets", **SETTINGS)
    hw.HELD_OUT, hw.TRAIN_LIMIT = 20, 30                                  # changed when all functions were defined
    exec(next(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.id == "data"), hw.__dict__)
    kept, held = ([image.numpy().tobytes() for image in images] for images, _ in (hw.train_set, hw.validation_set))
    assert (len(kept), len(held)) == (30, 20) and len({*kept, *held}) == 50


def test_colab_without_a_file_of_the_notebook_and_settings_that_papermill_injected(empty, tmp_path):
    notebook, content = nbformat.read(NOTEBOOK, as_version=4), tmp_path / "content"
    injected = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in dict(SETTINGS, SEED=1).items())])
    notebook.cells.insert(1 + notebook.cells.index(*tagged(notebook, "parameters")), nbformat.v4.new_code_cell(
        injected, metadata=dict(tags=["injected-parameters"])))
    nbformat.write(notebook, tmp_path / "injected.ipynb")
    assert load_definitions(tmp_path / "injected.ipynb", "homework_injected").PT_FILE.name == PT
    cells = {c.id: c for c in notebook.cells if c.id != "overfit"}
    early = nbformat.v4.new_code_cell(cells["encoder_decoder"].source, metadata=dict(tags=["raises-exception"]))
    own = [nbformat.v4.new_code_cell(f"import sys\n{line}") for line in ("!{sys.executable} -V", "print(predictions)")]
    notebook.cells = [early, *cells.values()]
    notebook.cells[-(len(cells) - [*cells].index("export_run")):0] = own           # before the cell that exports
    shutil.copytree(empty, content, ignore=shutil.ignore_patterns("*.ipynb", "checkpoints"))
    (content / CSV).write_text("\n".join(["ImageId,Prediction", *(f"{i},{i % 10}" for i in range(1, 31))]))
    before = state(content)
    NotebookClient(notebook, kernel_name="python3", resources=dict(metadata=dict(path=content))).execute()
    assert failed(printed(notebook, "export_run")) == [
        "csv agrees with the model", "accuracy above 57 %", "zip with the notebook as run"]
    assert "RETRAIN = True trains with these" in printed(notebook, "training") and state(content) == before


def test_a_script_on_flat_pictures_of_ones_own_leaves_cifar10s_files_alone(tmp_path):
    for folder in (tmp_path / "pictures" / part / name for part in ("train", "test") for name in ("2", "10")):
        folder.mkdir(parents=True)
        plt.imsave(folder / "flat.png", torch.full((8, 8, 3), 0.5).numpy())
    (tmp_path / PT).write_bytes(b"CIFAR-10's")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    parameters.source = override(parameters.source, SETTINGS | dict(DATASET="pictures"))
    cells = [f"# In[ ]:\n\n\n{c.source}" for c in notebook.cells if c.cell_type == "code" and c.id != "overfit"]
    (tmp_path / "homework.py").write_text("\n\n\n".join(["#!/usr/bin/env python", *cells]), "utf-8")
    done = subprocess.run([sys.executable, "homework.py"], cwd=tmp_path, capture_output=True, text=True)
    assert failed(done.stdout) == ["below 1 MB as float32", "accuracy above 57 %", "zip with the notebook as run"]
    assert (tmp_path / PT).read_bytes() == b"CIFAR-10's" and ": 0 times" not in done.stdout
    assert (tmp_path / "B1_pictures_classes.csv").read_text() == "Prediction,Class\n0,2\n1,10\n"


def test_a_cell_that_fails_is_saved_and_said(tmp_path):
    with pytest.raises(Exception, match="held_out is 7"):
        execute(path := shutil.copy(NOTEBOOK, tmp_path), SETTINGS | dict(HELD_OUT=7))
    saved = nbformat.read(path, as_version=4)
    assert "held_out is 7" in printed(saved, "data") and "HELD_OUT = 0 " in tagged(saved, "parameters")[0].source
