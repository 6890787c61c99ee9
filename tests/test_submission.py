import copy
import json
import shutil
import subprocess
import sys
import zipfile
import zlib
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
        assert tensor.dtype == other.dtype and (torch.equal(tensor, other) or not tensor.is_floating_point())
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


# fewer bits

@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_quantize_rounds_to_the_nearest_code_and_is_idempotent(hw, bits):
    matrix = torch.randn(7, 50, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-3, 2, 7)[:, None]
    scales, codes = hw.quantize(matrix, bits)
    top = 2 ** (bits - 1) - 1
    assert (codes.abs().amax(dim=1) == top).all() and codes.dtype == torch.int8 and scales.dtype == torch.float16
    rounded = scales.float() * codes
    assert ((matrix - rounded).abs() <= 0.5 * scales.float() + matrix.abs() * 2**-10).all()
    for again, first in zip(hw.quantize(rounded, bits), (scales, codes)):
        assert torch.equal(again, first)


def test_quantize_keeps_a_row_of_zeros(hw):
    scales, codes = hw.quantize(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 4)
    assert codes.tolist() == [[0, 0], [4, -7]] and scales.isfinite().all()


@pytest.mark.parametrize("bits", [1, 9, 0, -4])
def test_quantize_refuses(hw, bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; it must be 2 to 8"):
        hw.quantize(torch.ones(2, 2), bits)


@pytest.mark.parametrize("bits", [16, 8, 6, 4, 3])
def test_a_loaded_model_has_the_rounded_weights_and_can_be_saved_again(hw, tmp_path, bits):
    model = trained_model(hw)
    model.bits = bits
    hw.save_pt(model, tmp_path / "one.pt")
    again = torch.load(tmp_path / "one.pt")
    for tensor, other in zip(again.state_dict().values(), model.state_dict().values()):
        if tensor.ndim == 2 and bits < 16:
            scales, codes = hw.quantize(other, bits)
            assert torch.equal(tensor, scales.float() * codes)
        elif tensor.is_floating_point():
            assert torch.equal(tensor, other.half().float())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in again.parameters())
    hw.save_pt(again, tmp_path / "two.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    hw.F.cross_entropy(again.train()(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()  # it can be trained on
    assert all(p.grad is not None for p in again.parameters())


def test_fewer_bits_give_a_smaller_file(hw):
    model, sizes = hw.myViT(), []
    for model.bits in (32, 16, 8, 6, 4, 3):
        sizes.append(len(hw.pickled(model)))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 1_000_000 and sizes[2] < 270_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_saved_on_one_device_and_loaded_on_another(hw, tmp_path):
    model = trained_model(hw).eval()
    hw.save_pt(model.cuda(), tmp_path / "model.pt")
    assert next(torch.load(tmp_path / "model.pt").parameters()).device.type == "cpu"
    again = torch.load(tmp_path / "model.pt", map_location="cuda")
    assert next(again.parameters()).device.type == "cuda"
    torch.testing.assert_close(again(torch.ones(1, 3, 32, 32).cuda()), model(torch.ones(1, 3, 32, 32).cuda()))


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("where", [0.1, 0.9])
def test_an_altered_model_file_is_refused(hw, tmp_path, bits, where):
    model = hw.myViT(**tiny.MODEL)
    model.bits = bits
    content = bytearray(hw.pickled(model))
    squeezed = hw.pack(model)[1][2].numpy().tobytes()
    content[content.index(squeezed) + int(where * len(squeezed))] ^= 4
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or altered|holds"):
        torch.load(tmp_path / "model.pt")


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"0", lambda raw: b""],
                         ids=["short", "long", "empty"])
def test_weights_of_another_length_are_refused(hw, change):
    unpack, (arguments, bits, squeezed) = hw.pack(hw.myViT(**tiny.MODEL))
    raw = zlib.decompress(squeezed.numpy().tobytes())
    squeezed = torch.frombuffer(bytearray(zlib.compress(change(raw))), dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"holds {len(change(raw))} bytes of weights; .* has {len(raw)}"):
        unpack(arguments, bits, squeezed)


def test_a_shortened_block_of_weights_is_refused(hw):
    unpack, (arguments, bits, squeezed) = hw.pack(hw.myViT(**tiny.MODEL))
    with pytest.raises(ValueError):
        unpack(arguments, bits, squeezed[:-50].clone())


# training with rounded weights

@pytest.mark.parametrize("bits", [3, 6])
def test_what_is_trained_is_what_will_be_stored(hw, bits):
    model = trained_model(hw)
    rounded = hw.round_in_training(model, bits)
    x = torch.rand(4, 3, 32, 32)
    stored = hw.unpack(*hw.pack(hw.plain(rounded))[1])
    seen = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    assert len(seen) == 9
    for name in seen:
        where, _, attribute = name.rpartition(".")
        during, after = (getattr(m.get_submodule(where), attribute) for m in (rounded, stored))
        assert not torch.equal(during, seen[name])
        torch.testing.assert_close(during, after, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in rounded.parameters()) == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(rounded.eval()(x), stored(x), rtol=2e-2, atol=2e-2)  # biases at half precision


def test_the_gradient_passes_through_the_rounding(hw):
    rounded = hw.round_in_training(trained_model(hw), 3)
    layer = rounded.stages[0][0].to_patch_tokens[2]
    x = torch.rand(6, layer.in_features)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, x.sum(dim=0).expand_as(layer.weight))


def test_training_with_rounded_weights_returns_what_it_stores(hw, tmp_path):
    model, _ = tiny.train(hw, tmp_path)
    with np.load(SAMPLE) as arrays:
        data = [torch.from_numpy(arrays[name]) for name in ("train_images", "train_labels")]
    first, again = (hw.smaller(model, 4, data, data, tiny.hyperparameters(hw), folder=tmp_path,
                               device=torch.device("cpu")) for _ in range(2))
    assert first.bits == again.bits == 4 and not first.training
    assert hw.pickled(first) == hw.pickled(again)
    for tensor, other in zip(first.state_dict().values(), again.state_dict().values()):
        assert torch.equal(tensor, other)
    stored = hw.unpack(*hw.pack(first)[1])
    for tensor, other in zip(first.state_dict().values(), stored.state_dict().values()):
        assert torch.equal(tensor, other)
    assert not torch.equal(first.head[1].weight, hw.smaller(model, 8, data, None, None).head[1].weight)
    assert model.bits == 32 and len(list(tmp_path.iterdir())) == 2


def test_rounded_training_is_found_where_the_statistics_come_out_otherwise(hw, tmp_path):
    model = trained_model(hw)
    with np.load(SAMPLE) as arrays:
        data = [torch.from_numpy(arrays[name]) for name in ("train_images", "train_labels")]
    options = dict(before=["one", "other", 0.4], folder=tmp_path, device=torch.device("cpu"))
    first = hw.smaller(model, 4, data, None, tiny.hyperparameters(hw), **options)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer *= 1 + 1e-6                               # as on another processor
    assert hw.pickled(hw.smaller(model, 4, data, None, tiny.hyperparameters(hw), **options)) == hw.pickled(first)
    assert len(list(tmp_path.iterdir())) == 1
    hw.smaller(model, 4, data, None, tiny.hyperparameters(hw), **options | dict(before=["one", "other", 0.6]))
    assert len(list(tmp_path.iterdir())) == 2


def test_statistics_are_of_whole_batches(hw):
    images = torch.randint(0, 256, (1003, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[1000:] = 0                                        # three black pictures would count as much as 500
    half, whole, more = (hw.recalibrate(trained_model(hw), some).state_dict().values()
                         for some in (images[:500], images[:1000], images))
    assert all(map(torch.equal, whole, more)) and not all(map(torch.equal, whole, half))


@pytest.mark.parametrize("bits", [32, 8, 5])
def test_statistics_are_those_of_the_rounded_weights_on_whole_pictures(hw, bits):
    model = trained_model(hw)
    with np.load(SAMPLE) as arrays:
        images = torch.from_numpy(arrays["train_images"])
    smaller = hw.smaller(model, bits, (images, None), None, None)
    seen = {}
    for name, module in smaller.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].var(dim=0)}))
    with torch.no_grad():
        smaller(hw.to_input(images))
    assert seen and not smaller.training
    for name, variance in seen.items():
        torch.testing.assert_close(smaller.get_submodule(name).running_var, variance, rtol=0.03, atol=1e-3)


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

@pytest.mark.parametrize("student", ["B12345678", 41047025])
def test_names_follow_the_student_id(student):
    named = load_definitions(name="homework_of_another_student", STUDENT_ID=student)
    assert [named.NOTEBOOK_NAME, *map(str, (named.PT_FILE, named.CSV_FILE, named.ZIP_FILE))] == [
        f"DL_HW3_{student}.ipynb", *(f"{student}_{end}" for end in ("submission.pt", "submission.csv", "HW3.zip"))]
    assert isinstance(named.OUTPUT, str)                       # it is handed to another process


@pytest.mark.parametrize("name, value", [("BITS", 7), ("EPOCHS", 0)])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
        load_definitions(name="homework_refused", **{name: value})


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
    hw.verify(hw.NOTEBOOK_NAME, hw.OUTPUT, "CIFAR10", str(folder / "data"), SAMPLE_SHA256)


def test_verify_lists_what_a_machine_can_check(hw, submission, capsys):
    verify(hw, submission)
    verdicts = {line[6:36].strip(): line[:4].strip() for line in capsys.readouterr().out.splitlines()}
    assert len(verdicts) >= 9
    assert verdicts.pop("accuracy above 57 %") == "NO"  # the model is not trained
    assert set(verdicts.values()) == {"yes"}


@pytest.mark.parametrize("name, part", [("myFFN", "Part 5"), ("mySingleHeadAttention", "Part 6, single"),
                                        ("myMultiHeadAttention", "Part 6, multi"), ("myTransformer", "Part 7")])
def test_verify_finds_a_layer_that_does_nothing(hw, monkeypatch, name, part):
    def nothing(self, x, context=None, return_weights=False):
        return (x, torch.eye(5).expand(2, 5, 5)) if return_weights else x

    assert all(verdict for _, verdict, _ in hw.layer_verdicts())
    monkeypatch.setattr(hw, name, type(name, (getattr(hw, name),), dict(forward=nothing)))
    assert next(not verdict for line, verdict, _ in hw.layer_verdicts() if line.startswith(part))


def test_verify_looks_at_the_weights_and_at_the_mixing(hw, monkeypatch):
    def uniform(q, k, v):
        weights = torch.full((*q.shape[:-1], k.shape[-2]), 1 / k.shape[-2])
        return weights @ v, weights

    def each_alone(self, x):
        return 2 * x

    def failed():
        return [line for line, verdict, _ in hw.layer_verdicts() if not verdict]

    with monkeypatch.context() as patch:
        patch.setattr(hw, "scaled_dot_product_attention", uniform)
        assert failed() == ["Part 6, single-head attention"]
    with monkeypatch.context() as patch:
        patch.setattr(hw.myTransformer, "forward", each_alone)
        assert failed() == ["Part 7, Transformer"]
    assert not failed()


@pytest.mark.parametrize("source", ["nn.MultiheadAttention(8, 2)", "F.scaled_dot_product_attention(q, k, v)",
                                    "nn.TransformerEncoderLayer(8, 2)"])
def test_verify_finds_ready_made_attention(hw, submission, capsys, source):
    Path(hw.NOTEBOOK_NAME).write_text(json.dumps(dict(cells=[cell(source)])))
    verify(hw, submission)
    assert "NO  no ready-made attention" in capsys.readouterr().out


def test_verify_applies_the_limits_to_cifar10_alone(hw, submission, sample, monkeypatch, capsys):
    data = [torch.from_numpy(array) for array in sample]
    monkeypatch.setattr(hw, "load_dataset", lambda *arguments: (data, hw.CIFAR10_CLASSES))
    hw.verify(hw.NOTEBOOK_NAME, hw.OUTPUT, "SVHN", str(submission / "data"), SAMPLE_SHA256)
    verdicts = {line[6:36].strip(): line[:4].strip() for line in capsys.readouterr().out.splitlines()}
    assert [line for line, verdict in verdicts.items() if verdict == "-"] == [
        "model below 1 MB as float32", "accuracy above 57 %"]
    assert set(verdicts.values()) == {"-", "yes"}


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
