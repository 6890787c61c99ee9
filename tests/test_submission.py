"""What is handed in: the .pt, the .csv, and the verdict on them."""

import contextlib
import copy
import io
import json
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
import tiny
import torch
from conftest import ROOT, SAMPLE, SAMPLE_SHA256
from torch import nn
from torch.nn.utils import parametrizations, prune

from run import load_definitions

CELLS = [c for c in nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4).cells if c.cell_type == "code"]


def fresh_process(code, cwd, definitions=True):
    """Run code in a new Python process after the notebook's definitions, as __main__: what it printed."""
    cells = [c.source for c in CELLS if definitions and "definitions" in c.metadata.tags]
    (cwd / "main.py").write_text("\n\n".join([*cells, code]), "utf-8")
    done = subprocess.run([sys.executable, "main.py"], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained_model(hw, **changed):
    """A model in train mode whose every number, batch norm's averages among them, differs from a new one's."""
    torch.manual_seed(4)
    model = hw.myViT(**tiny.MODEL | changed)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))
    return model


def content_of(hw, model, bits=6, name="01234567"):
    return hw.saved(hw.Packed(hw.pack(model, bits, name)))


def same_weights(model, other):
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


# the .pt

@pytest.mark.parametrize("bits", [32, 16, 8, 6, 4, 3])
def test_a_loaded_model_has_the_rounded_weights_and_can_be_trained_on(hw, bits):
    model = trained_model(hw)
    content = content_of(hw, model, bits)
    again = torch.load(io.BytesIO(content))
    assert isinstance(again, hw.myViT) and not any(m.training for m in again.modules())
    assert (again.fingerprint, again.bits) == ("01234567", bits)
    assert content_of(hw, trained_model(hw), bits) == content_of(hw, again, bits) == content
    for tensor, other in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
        if tensor.ndim == 2 and bits <= 8:
            scales, codes = hw.quantize(other, bits)
            assert torch.equal(tensor, scales.float() * codes)
        elif tensor.is_floating_point():
            assert torch.equal(tensor, other if bits == 32 else other.half().float())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in again.parameters())
    again.train()(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_fewer_bits_give_a_smaller_file(hw):
    sizes = [len(content_of(hw, hw.myViT(), bits)) for bits in (32, 16, 8, 6, 4, 3)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 1_000_000 and sizes[3] < 220_000


@pytest.mark.parametrize("changed", [
    dict(num_classes=4, patch_size=4), dict(both_views=False), dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    dict(dims=(6, 8, 4), depths=(1, 2, 1), heads=(0, 2, 1), mlp_dims=(9, 10, 3), norms=("layer", "batch", "batch"))])
def test_other_shapes_come_back_too(hw, changed):
    model = trained_model(hw, **changed).eval()
    again, x = torch.load(io.BytesIO(content_of(hw, model, 32))), torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), model(x)) and again.both_views == model.both_views


def test_plain_load_wherever_the_definitions_were_run_and_a_telling_error_elsewhere(hw, tmp_path):
    written = fresh_process(f"""
torch.manual_seed(1)
model = myViT(**{tiny.MODEL!r}).eval()
Path("model.pt").write_bytes(saved(Packed(pack(model, 32))))
print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", tmp_path)
    read = fresh_process("""
for options in ({}, dict(weights_only=False), dict(weights_only=True, map_location="cpu")):
    model = torch.load("model.pt", **options)
    assert isinstance(model, nn.Module) and not model.training and next(model.parameters()).device.type == "cpu"
    print(model(torch.ones(1, 3, 32, 32) / 3).tolist())""", tmp_path)
    assert read == 3 * written and len(json.loads(written)[0]) == 10
    assert isinstance(torch.load(tmp_path / "model.pt"), hw.myViT)              # defined in another module than __main__
    errors = fresh_process("""import torch
for options in ({}, dict(weights_only=False)):
    try:
        torch.load("model.pt", **options)
    except Exception as error:
        print("run_the_notebooks_definitions_first" in str(error))""", tmp_path, definitions=False)
    assert errors == "True\nTrue\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_saved_on_one_device_and_loaded_on_another(hw):
    content = content_of(hw, trained_model(hw).cuda(), 32)
    assert next(torch.load(io.BytesIO(content)).parameters()).device.type == "cpu"
    assert next(torch.load(io.BytesIO(content), map_location="cuda").parameters()).device.type == "cuda"


@pytest.mark.parametrize("change", [
    lambda m: m.requires_grad_(False), lambda m: m.eval(), lambda m: m.share_memory(), copy.copy, copy.deepcopy,
    lambda m: m.to(memory_format=torch.channels_last), lambda m: nn.DataParallel(m).module,
    lambda m: m.stages[0].eval() and m], ids=["frozen", "eval", "shared", "copy", "deepcopy", "layout", "inner", "mixed"])
def test_a_module_in_any_state_can_be_saved_and_stays_as_it_is(hw, change):
    model = change(trained_model(hw))
    states = [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
    assert content_of(hw, model) == content_of(hw, trained_model(hw))
    assert states == [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
    assert same_weights(model, trained_model(hw))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change, message", [
    (lambda m: setattr(m.head, "1", nn.Linear(8, 4)), r"size mismatch for head\.1\.weight"),
    (lambda m: m.head.append(nn.Linear(10, 10)), r"Unexpected key.*head\.2\.weight"),
    (lambda m: prune.l1_unstructured(m.head[1], "weight", 0.5), r"head\.1\.weight_mask"),
    (lambda m: parametrizations.weight_norm(m.head[1]), r"head\.1\.parametrizations"),
    (lambda m: torch.ao.quantization.quantize_dynamic(m.eval(), {nn.Linear}), r"Missing key.*linear1\.weight"),
    (nn.DataParallel, r"model is a DataParallel; .*\.module"),
    (lambda m: m.head.append(nn.Tanh()), "computes something else"),
    (lambda m: m.mean.fill_(0.1), "computes something else"),
    (lambda m: setattr(m, "forward", types.MethodType(lambda self, x: self.one_view(x) + 1, m)), "computes something else"),
    (lambda m: m.head.register_forward_hook(lambda *args: args[2] * 2), "computes something else")],
    ids=["new head", "layer", "pruned", "parametrized", "quantized", "wrapper", "function", "buffer", "forward", "hook"])
def test_a_changed_module_is_refused_with_what_differs(hw, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    model = trained_model(hw)
    changed = change(model)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        hw.pack(changed if isinstance(changed, (hw.myViT, nn.DataParallel)) else model, 6)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_a_changed_byte_is_refused_wherever_it_is(hw):
    content = content_of(hw, trained_model(hw))
    model = torch.load(io.BytesIO(content))
    for at in range(len(content)):
        altered = bytearray(content)
        altered[at] ^= 1 << at % 3
        with contextlib.suppress(Exception):
            again = torch.load(io.BytesIO(altered))
            same = same_weights(again, model) and again.arguments == model.arguments and again.bits == model.bits
            assert same and again.fingerprint == model.fingerprint, at


@pytest.mark.parametrize("row, bits, scale, codes", [
    ([0, 0], 4, 1, [0, 0]), ([1, -2], 4, 2 / 7, [4, -7]), ([3, 1.4], 3, 1, [3, 1]), ([3, 1.6], 3, 1, [3, 2]),
    ([-1, 0.4], 2, 1, [-1, 0]), ([127, 3, -64], 8, 1, [127, 3, -64]), ([1e-9, 0], 6, 1, [0, 0])])
def test_table_of_quantize(hw, row, bits, scale, codes):
    scales, found = hw.quantize(torch.tensor([row]).float(), bits)
    assert scales.item() == pytest.approx(scale, rel=1e-3) and found.tolist() == [codes]
    assert (scales.dtype, found.dtype) == (torch.float16, torch.int8)


@pytest.mark.parametrize("bits", [1, 9, -4])
def test_quantize_refuses(hw, bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; it must be 2 to 8"):
        hw.quantize(torch.ones(2, 2), bits)


def newer(hw, _):
    return hw.saved(hw.Packed((hw.FORMAT + 1, *hw.pack(trained_model(hw), 6)[1:], "something more")))


@pytest.mark.parametrize("change, why", [
    (lambda hw, content: content[:-100], "damaged"), (lambda hw, content: b"", "damaged"),
    (lambda hw, content: b"no model", "damaged"), (lambda hw, content: pickle.dumps([1]), "not made by this notebook"),
    (lambda hw, content: hw.saved(nn.Linear(2, 2)), "not made by this notebook"),
    (lambda hw, content: hw.saved(nn.Linear(2, 2).state_dict()), "it holds a OrderedDict, not a model of this homework"),
    (newer, "its format is [0-9]+, this notebook reads [0-9]+: take the notebook it came with")],
    ids=["truncated", "empty", "garbage", "pickle", "module", "state dict", "newer"])
@pytest.mark.filterwarnings("ignore")
def test_a_pt_that_cannot_be_read_is_named_with_the_reason_and_left(hw, tmp_path, change, why):
    path, content = tmp_path / "B1_submission.pt", change(hw, content_of(hw, trained_model(hw)))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"B1_submission\.pt cannot be read, and stays as it is: .*{why}") as error:
        hw.read_pt(path)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value) and "RETRAIN = True" in str(error.value)
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


# the .csv, and the verdict

@pytest.fixture(scope="module")
def verified():
    """Definitions of their own, because the verdict runs the notebook's checks among them."""
    return load_definitions(name="homework_verified")


@pytest.fixture
def verify(verified, sample, tmp_path, monkeypatch):
    """verify() for a model and its predictions on the sample: {line: (verdict, detail)}."""
    monkeypatch.chdir(tmp_path)
    model = trained_model(verified).eval()
    answers = verified.predict(model, torch.from_numpy(sample[2])).argmax(dim=1).tolist()
    Path("B1_submission.pt").write_bytes(content_of(verified, model, 32))
    rows = [f"{i},{answer}\n" for i, answer in enumerate(answers, 1)]
    Path("B1_submission.csv").write_text("".join(["ImageId,Prediction\n", *rows]))

    def verify(dataset="CIFAR10", sources=(), stale=None):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            verified.verify("B1", dataset, str(SAMPLE.parent), SAMPLE_SHA256, list(sources), stale)
        return {line[6:38].strip(): (line[:4].strip(), line[38:].strip()) for line in printed.getvalue().splitlines()}
    return verify


def failed(verdicts):
    return [line for line, (verdict, _) in verdicts.items() if verdict != "yes"]


def test_verify_lists_what_a_machine_can_check_and_finds_a_layer_that_does_nothing(verify, verified, monkeypatch):
    sources, untrained = [c.source for c in CELLS], "accuracy above 57 %"
    verdicts = verify(sources=sources)
    assert failed(verdicts) == [untrained] and len(verdicts) == 11
    assert verdicts["csv agrees with the model"] == ("yes", "30 of 30 rows")
    assert failed(verify(sources=sources, stale="its code cell 3 ...")) == [untrained, "notebook as it was run"]
    assert failed(verify(sources=[*sources, "F.scaled_dot_product_attention(q, k, v)"])) == ["no ready-made attention", untrained]
    for name in ("myFFN", "mySingleHeadAttention", "myMultiHeadAttention", "myTransformer"):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(verified, name), "forward", lambda self, x, *_, **__: x)
            assert any(name in line for line in failed(verify(sources=sources)) if line != untrained), name


def test_the_limits_apply_to_cifar10_alone(verify, verified, sample, monkeypatch):
    data = [torch.from_numpy(array) for array in sample]
    monkeypatch.setattr(verified, "load_dataset", lambda *_: (data, range(10)))
    assert [line for line, (verdict, _) in verify("SVHN").items() if verdict == "-"] == [
        "below 1 MB as float32", "accuracy above 57 %"]


@pytest.mark.parametrize("others, verdict", [(1, "yes"), (2, "NO")])
def test_pt_and_csv_agree_from_999_of_1000_images_on(verify, verified, sample, monkeypatch, others, verdict):
    images, path = torch.from_numpy(sample[2])[torch.arange(1000) % 30], Path("B1_submission.csv")
    answers = [int(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
    rows = [f"{i + 1},{(answers[i % 30] + (i < others)) % 10}" for i in range(1000)]
    path.write_text("\n".join(["ImageId,Prediction", *rows]))
    monkeypatch.setattr(verified, "load_dataset", lambda *_: ([None, None, images, torch.zeros(1000).long()], range(10)))
    assert verify()["csv agrees with the model"] == (verdict, f"{1000 - others} of 1,000 rows")


@pytest.mark.parametrize("change, what", [
    (lambda t: "\ufeff" + t, r"first line is .*byte-order mark; it must be 'ImageId,Prediction'"),
    (lambda t: re.sub(r"(,\d)\n", r"\1.0\n", t), r"line 2 is '1,\d\.0'; it must be 1, a comma and a class from 0 to 9"),
    (lambda t: t + "\n", "line 32 is ''"), (lambda t: t.replace("\n", "\r\n"), r"first line is 'ImageId,Prediction\\r'"),
    (lambda t: re.sub("(?m)^(?=.)", "0,", t), "first line is '0,ImageId,Prediction'"),
    (lambda t: t.replace(",", ";"), "first line is 'ImageId;Prediction'"), (lambda t: t.encode("utf-16"), "first line is"),
    (lambda t: "", "first line is ''"), (lambda t: t[:t.rindex("30,")], "it has 29 predictions for 30 images"),
    (lambda t: t + "31,0\n", "it has 31"), (lambda t: t.replace("\n2,", "\n3,"), r"line 3 is '3,\d'; it must be 2"),
    (lambda t: t[:-2] + "10\n", "line 31 is '30,10'"), (lambda t: t[:-2] + "-1\n", "line 31 is '30,-1'")])
def test_a_csv_that_went_through_a_spreadsheet(verify, change, what):
    path = Path("B1_submission.csv")
    content = change(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    verdict, detail = verify()["csv in the promised form"]
    assert verdict == "NO" and re.search(what, detail), detail
