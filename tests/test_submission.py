import copy
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT, SAMPLE, SAMPLE_SHA256, delivered

from run import load_definitions

PREAMBLE = """if True:
    import json, sys
    for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
        if "definitions" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), globals())
"""


def fresh_process(code, *arguments, cwd):
    """Run code in a new Python process after the notebook's definitions, as __main__; returns what it printed."""
    command = [sys.executable, "-c", PREAMBLE + code, str(ROOT / "DL_HW3_StudentID.ipynb"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained_model(hw):
    """A model whose every number, BatchNorm's averages and counter among them, differs from a new one's."""
    torch.manual_seed(4)
    model = hw.myViT(**tiny.MODEL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))
    return model


# the .pt

def test_torch_load_gives_the_model_back(hw, tmp_path):
    model = trained_model(hw)
    size = hw.save_pt(model, tmp_path / "model.pt")
    assert size == (tmp_path / "model.pt").stat().st_size
    again = torch.load(tmp_path / "model.pt")
    assert isinstance(again, hw.myViT) and not any(m.training for m in again.modules())
    assert list(again.state_dict()) == list(model.state_dict())
    for tensor, other in zip([*again.parameters(), *again.buffers()], [*model.parameters(), *model.buffers()]):
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype
    assert all(p.dtype == torch.float32 and p.requires_grad for p in again.parameters())
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))


def test_the_same_model_gives_the_same_file(hw, tmp_path):
    model = trained_model(hw)
    for name in ("one", "two"):
        hw.save_pt(model, tmp_path / name / "model.pt")
    assert (tmp_path / "one" / "model.pt").read_bytes() == (tmp_path / "two" / "model.pt").read_bytes()


def test_deepcopy_keeps_weights_and_mode(hw):
    model = trained_model(hw)
    twin = copy.deepcopy(model)
    assert twin.training and not copy.deepcopy(model.eval()).training
    for tensor, other in zip(twin.state_dict().values(), model.state_dict().values()):
        assert torch.equal(tensor, other) and tensor.data_ptr() != other.data_ptr()


def test_other_shapes_come_back_too(hw, tmp_path):
    model = hw.myViT(num_classes=4, **tiny.MODEL | dict(patch_size=4))
    hw.save_pt(model, tmp_path / "model.pt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(torch.load(tmp_path / "model.pt")(x), model.eval()(x))


def test_plain_load_in_a_fresh_process(tmp_path):
    """Saved by one process, loaded by another, both with the definitions in __main__ as a notebook has them."""
    written = fresh_process(f"""
torch.manual_seed(1)
model = myViT(**{tiny.MODEL!r}).eval()
torch.save(model, "model.pt")
print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", cwd=tmp_path)
    read = fresh_process("""
model = torch.load("model.pt")
assert isinstance(model, nn.Module) and not model.training and next(model.parameters()).device.type == "cpu"
print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", cwd=tmp_path)
    assert read == written and len(json.loads(read)[0]) == 10


@pytest.mark.parametrize("difference", [-1, 1])
def test_weights_of_another_length_are_refused(hw, difference):
    unpack, (arguments, weights) = hw.pack(hw.myViT(**tiny.MODEL))
    numbers = len(weights)
    with pytest.raises(ValueError, match=f"weights holds {numbers + difference} numbers; .* has {numbers}"):
        unpack(arguments, torch.zeros(numbers + difference))


# the .csv

def test_write_csv(hw, tmp_path):
    hw.write_csv(torch.tensor([3, 0, 9]), tmp_path / "new.csv")
    assert (tmp_path / "new.csv").read_bytes() == b"ImageId,Prediction\n1,3\n2,0\n3,9\n"


# the delivered files

def test_delivered_pt_is_small(tmp_path):
    path = delivered("StudentID_submission.pt")
    assert path.stat().st_size < 1_000_000
    numbers = int(fresh_process("""
model = torch.load(sys.argv[2])
assert isinstance(model, nn.Module) and not model.training
assert all(p.dtype == torch.float32 for p in model.parameters())
assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
print(sum(t.numel() for t in [*model.parameters(), *model.buffers()]))""", path, cwd=tmp_path))
    assert numbers <= 250_000 and 4 * numbers < 1_000_000


def delivered_predictions():
    content = delivered("StudentID_submission.csv").read_bytes()
    lines = content.decode("ascii").split("\n")
    assert lines[0] == "ImageId,Prediction" and lines[-1] == "" and b"\r" not in content
    ids, classes = zip(*(line.split(",") for line in lines[1:-1]))
    assert list(ids) == [str(i) for i in range(1, 10_001)]
    assert set(classes) == set("0123456789")
    return torch.tensor([int(c) for c in classes])


def test_delivered_csv_is_in_the_form_asked_for():
    delivered_predictions()


def predicted(tmp_path, images):
    """What the delivered .pt says in a fresh process, on ToTensor's values."""
    np.save(tmp_path / "images.npy", images)
    pt = delivered("StudentID_submission.pt")
    fresh_process("""
model = torch.load(sys.argv[2])
x = torch.from_numpy(np.load("images.npy")).permute(0, 3, 1, 2) / 255
with torch.no_grad():
    classes = torch.cat([model(part).argmax(dim=1) for part in x.split(250)])
np.save("classes.npy", classes.numpy())""", pt, cwd=tmp_path)
    return torch.from_numpy(np.load(tmp_path / "classes.npy"))


def test_delivered_files_agree_on_the_sample(tmp_path, sample):
    with np.load(SAMPLE) as arrays:
        rows = arrays["test_rows"]
    assert (predicted(tmp_path, sample[2]) == delivered_predictions()[rows]).sum() >= 29  # of 30: rounding


def test_delivered_files_agree_on_all_images(tmp_path, cifar10):
    claimed = delivered_predictions()
    assert (claimed == cifar10[3]).double().mean() > 0.57
    assert (predicted(tmp_path, cifar10[2].numpy()) == claimed).double().mean() >= 0.999


# names

def test_names_follow_the_student_id():
    named = load_definitions(name="homework_of_another_student", STUDENT_ID="B12345678")
    assert [named.NOTEBOOK_NAME, *map(str, (named.PT_FILE, named.CSV_FILE, named.ZIP_FILE))] == [
        "DL_HW3_B12345678.ipynb", "B12345678_submission.pt", "B12345678_submission.csv", "B12345678_HW3.zip"]


# is the notebook's file what was run?

def cell(source, count=None, outputs=(), tags=()):
    return dict(cell_type="code", source=source.splitlines(keepends=True), execution_count=count, outputs=list(outputs),
                metadata=dict(tags=list(tags)))


@pytest.fixture
def notebook():
    return dict(cells=[
        dict(cell_type="markdown", source=["# Text"], metadata={}),
        cell("a = 1\nb = 2", 1),
        cell("", None),
        cell("print(a)", 3, [dict(output_type="stream", text="1")]),
        cell("export(In)", tags=["export"]),
        cell("not yet run"),
    ])


EXECUTED = ["", "a = 1\nb = 2", "an attempt that is gone", "print(a)\n", "export(In)"]


def test_a_fresh_notebook_is_not_stale(hw, notebook):
    assert hw.why_stale(notebook, EXECUTED) is None


@pytest.mark.parametrize("change, reason", [
    (lambda cells: cells[1].update(source=["a = 2"]), "cell 1 is not what was run as In [1]"),
    (lambda cells: cells[3].update(execution_count=2), "cell 3 is not what was run as In [2]"),
    (lambda cells: cells[3].update(execution_count=9), "cell 3 is not what was run as In [9]"),
    (lambda cells: cells[3].update(execution_count=None), "cell 3 was not run when the file was saved"),
    (lambda cells: cells[3]["outputs"].append(dict(output_type="error")), "cell 3 ended with an error"),
    (lambda cells: cells[4]["metadata"].clear(), "cell 4 was not run when the file was saved"),
    (lambda cells: cells.__delitem__(slice(4, 6)), "it has no cell tagged export"),
], ids=["edited", "other cell", "other session", "not run", "error", "export untagged", "no export"])
def test_a_stale_notebook_is_noticed(hw, notebook, change, reason):
    change(notebook["cells"])
    assert hw.why_stale(notebook, EXECUTED) == reason


# the zip

@pytest.fixture
def submission(hw, sample, sample_folder, monkeypatch):
    """In a working folder: the sample as data, a model, its predictions and a notebook, which is small."""
    monkeypatch.chdir(sample_folder)
    monkeypatch.setattr(hw, "DATA_SHA256", SAMPLE_SHA256)
    model = trained_model(hw)
    hw.save_pt(model)
    hw.write_csv(hw.predict(model.eval(), torch.from_numpy(sample[2])).argmax(dim=1))
    Path(hw.NOTEBOOK_NAME).write_text(json.dumps(dict(cells=[cell("1", 1), cell("export(In)", tags=["export"])])))
    return sample_folder


def test_export_without_a_notebook_file_says_what_to_add(hw, submission, monkeypatch, capsys):
    monkeypatch.setattr(hw, "find_notebook", lambda: None)
    hw.export(["", "1"])
    output = capsys.readouterr().out
    assert "NOT COMPLETE" in output and "DL_HW3_StudentID.ipynb" in output and "by hand" in output
    with zipfile.ZipFile("StudentID_HW3.zip") as archive:
        assert sorted(archive.namelist()) == ["StudentID_submission.csv", "StudentID_submission.pt"]


@pytest.mark.parametrize("executed, stale", [(["", "1"], False), (["", "2"], True)])
def test_export_says_when_the_notebook_is_stale(hw, submission, monkeypatch, capsys, executed, stale):
    monkeypatch.setattr(hw, "verify_in_fresh_process", lambda: "verified")
    monkeypatch.setattr(hw, "find_notebook", lambda: Path(hw.NOTEBOOK_NAME))
    hw.export(executed)
    output = capsys.readouterr().out
    assert ("NOT UP TO DATE" in output) == ("cell 0 is not what was run as In [1]" in output) == stale
    assert "verified" in output
    with zipfile.ZipFile("StudentID_HW3.zip") as archive:
        for name in ("DL_HW3_StudentID.ipynb", "StudentID_submission.csv", "StudentID_submission.pt"):
            assert archive.read(name) == Path(name).read_bytes()
        assert len(archive.namelist()) == 3


def test_find_notebook(hw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert hw.find_notebook() is None
    monkeypatch.setenv("JPY_SESSION_NAME", "my notebook.ipynb")
    Path(hw.NOTEBOOK_NAME).touch()
    assert hw.find_notebook() == Path(hw.NOTEBOOK_NAME)
    Path("my notebook.ipynb").touch()
    assert hw.find_notebook() == Path("my notebook.ipynb")


# what verifies the zip's content

def verify(hw, folder):
    hw.verify(hw.NOTEBOOK_NAME, str(folder / "data"), SAMPLE_SHA256)


def test_verify_lists_what_a_machine_can_check(hw, submission, capsys):
    verify(hw, submission)
    verdicts = {line[6:36].strip(): line[:4].strip() for line in capsys.readouterr().out.splitlines()}
    assert len(verdicts) >= 9
    assert verdicts.pop("accuracy above 57 %") == "NO"  # the model is not trained
    assert set(verdicts.values()) == {"yes"}


def test_verify_finds_ready_made_attention(hw, submission, capsys):
    Path(hw.NOTEBOOK_NAME).write_text(json.dumps(dict(cells=[cell("nn.MultiheadAttention(8, 2)")])))
    verify(hw, submission)
    assert "NO  no ready-made attention" in capsys.readouterr().out


@pytest.mark.parametrize("change, complaint", [
    (lambda t: t.replace("ImageId", "Id"), "header or line ends"),
    (lambda t: t.rstrip("\n"), "header or line ends"),
    (lambda t: t.replace("\n2,", "\n3,"), "ids"),
    (lambda t: "\n".join(t.split("\n")[:-2]) + "\n", "ids"),
    (lambda t: t[:-2] + "10\n", "classes other than"),
    (lambda t: t[:-2] + f"{(int(t[-2]) + 1) % 10}\n", "96.67%"),
], ids=["header", "last line end", "ids", "too short", "class 10", "another class"])
def test_verify_refuses_a_csv(hw, submission, change, complaint):
    path = Path(hw.CSV_FILE)
    path.write_text(change(path.read_text()))
    with pytest.raises(AssertionError, match=complaint):
        verify(hw, submission)


def test_a_zip_that_does_not_verify_is_an_error(hw, submission):
    shutil.copy(ROOT / "DL_HW3_StudentID.ipynb", hw.NOTEBOOK_NAME)
    hw.PT_FILE.write_bytes(b"no model")
    hw.write_zip(Path(hw.NOTEBOOK_NAME))
    with pytest.raises(RuntimeError, match=r"does not verify(?s:.*)UnpicklingError"):
        hw.verify_in_fresh_process()
