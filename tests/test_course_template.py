"""course_template/: what its Transformer does about a locked template, and what its protocol leaves out of that."""

import csv
import importlib
import io
import json
import re
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.testing import assert_close as close

from run import load_definitions

FOLDER = ROOT / "course_template"
CODE, README = ((FOLDER / name).read_text(encoding="utf-8") for name in ("parts_5_to_7.py", "README.md"))
DIM, HIDDEN, SIZES = 7, 11, dict(dim=12, heads=3, head_dim=4, mlp_dim=7)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def course():
    """The notebook's definitions, with parts_5_to_7.py run after them."""
    module = load_definitions(name="course_under_test")
    exec(CODE, module.__dict__)
    return module


@pytest.fixture
def protocol(monkeypatch):
    """A fresh protocol.py: leave_out changes the classes that it has loaded."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # it loads the notebook under this name
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "protocol", raising=False)
    return importlib.import_module("protocol")


def make(course, tokens=17):
    transformer = course.myTransformer(DIM, 3, 4, HIDDEN, depth=1)
    return transformer, torch.randn(4, tokens, DIM), torch.optim.Adam(transformer.parameters(), lr=0.003)


def loss_of(y, x):
    return (y[:, 0].float() - x[:, 1].float()).square().mean()


def last_matrix(transformer):
    return transformer.blocks[-1].ffn.linear1.weight


@pytest.mark.parametrize("tokens", [16, 17, 64])
def test_takes_any_grid_but_no_second_one(course, tokens):
    transformer, x, _ = make(course, tokens)
    assert transformer(x).shape == transformer.eval()(x).shape == x.shape
    if tokens == 17:  # the class token says nothing, and becomes the mean
        assert torch.equal(y := transformer(x + (torch.arange(17) == 0)[:, None]), transformer(x))
        assert torch.equal(y[:, 0], y[:, 1:].mean(dim=1))
    for wrong, why in ((2, 49, DIM), "the training had"), ((2, 18, DIM), "a square grid"), ((2, 49, 6), "tokens, 7"):
        with pytest.raises(ValueError, match=why):
            transformer(torch.randn(wrong))


def test_centring_subtracts_the_mean_of_what_was_seen_in_training(course):
    retokenization, position = course.myRetokenization(DIM, 4), 10 * torch.randn(64, DIM)
    batches = position + torch.randn(3, 2, 64, DIM)
    seen, mean = [retokenization.centred(batch) for batch in batches], batches.mean(dim=(0, 1))
    close(seen[-1], batches[-1] - mean)
    close(retokenization.eval().centred(batches[0]), batches[0] - mean)


def test_picture_puts_each_token_in_its_place_and_training_hides_some(course):
    retokenization, x, seen = course.myRetokenization(DIM, 4).eval(), torch.zeros(50, 65, DIM), []
    retokenization.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x[:, 1 + 8 * 2 + 5] = 1  # third row, sixth column
    retokenization(x)
    pixels = seen[0][0].any(dim=0).nonzero()
    assert pixels.min(dim=0).values.tolist() == [8, 20] and pixels.max(dim=0).values.tolist() == [11, 23]
    retokenization(torch.randn(50, 65, DIM))
    retokenization.train()(torch.randn(50, 65, DIM))
    hidden = [(picture == 0).all(dim=1)[:, ::4, ::4].double().mean() for picture in seen[1:]]
    assert hidden[0] == 0 and 0.08 < hidden[1] < 0.12


def test_eval_mode_is_the_average_of_the_weights(course):
    transformer, x, optimizer = make(course)
    weight, expected = last_matrix(transformer), last_matrix(transformer).detach().clone()
    for step in (1, 2, 3, 4, 5, 20_000):  # new weights count for 9 parts of step + 9, at least for one of 2,000
        transformer.steps = step - 1
        loss_of(transformer(x), x).backward()
        expected.lerp_(weight.detach(), max(9 / (step + 9), 0.0005))
        optimizer.step()
    last, statistics = weight.detach().clone(), transformer.retokenize.stem[1].running_var.clone()
    close(last_matrix(transformer.eval()).detach(), expected, atol=1e-6, rtol=0)
    assert not torch.equal(transformer.retokenize.stem[1].running_var, statistics)
    assert weight is last_matrix(transformer.train().eval().train()) and torch.equal(weight, last)


@pytest.mark.parametrize("mode", [True, False])
def test_a_saved_transformer_is_the_average_and_trains_on(course, mode):
    (other, *_), (transformer, x, optimizer) = make(course), make(course)
    for _ in range(3):
        loss_of(transformer(x) + 0 * other(x), x).backward()
        optimizer.step()
    weights, file = [p.detach().clone() for p in transformer.parameters()], io.BytesIO()
    torch.save(transformer.train(mode), file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert all(map(torch.equal, transformer.train().parameters(), weights))
    assert torch.equal(saved.eval()(x), transformer.eval()(x))
    loss_of(saved.train()(x), x).backward()
    singular = torch.linalg.svdvals(last_matrix(saved).grad)
    assert 0.6 < singular[-2] and singular[0] < 1.3  # the hook is back; LN leaves one direction without gradient
    assert saved.double()(x.double()).dtype == torch.float64  # as .to(device) between two steps
    saved.float().load_state_dict(other.state_dict())         # forgets the average
    assert torch.equal(last_matrix(saved.eval()), last_matrix(other))
    saved.train()(x)
    assert all(len(p._backward_hooks or []) == (p.ndim == 2) for p in saved.parameters())
    assert saved.to("meta").average[0].is_meta


def test_gradient_hook_orthogonalizes_the_running_mean_of_finite_gradients(course):
    g1, g2 = torch.randn(2, DIM, HIDDEN)
    hook, direction = course.orthogonal_gradient(torch.zeros(DIM, HIDDEN)), course.orthogonalize(g1)
    close(hook(g1), direction)
    assert torch.equal(hook(g1 * torch.inf), g1 * torch.inf)  # a GradScaler has to see it
    close(hook(g2), course.orthogonalize(0.1 * g2 + 0.9 * (0.09 * g1 + 0.1 * g2)))
    scaled = course.orthogonal_gradient(torch.zeros(DIM, HIDDEN))(2.0 ** 40 * g1) / 2.0 ** 40
    close(scaled / scaled.norm(), direction / direction.norm())
    assert 1e-3 < scaled.norm() / g1.norm() < 1  # far above Adam's eps, whatever the scale


def test_float16_with_a_grad_scaler_survives_an_overflow(course):
    transformer, x, optimizer = make(course, 5)
    scaler, weight, losses = torch.amp.GradScaler("cpu"), last_matrix(transformer), []
    for step in range(12):
        with torch.autocast("cpu", torch.float16):
            losses.append(loss_of(transformer(x), x))
        optimizer.zero_grad()
        before = weight.detach().clone()
        scaler.scale(losses[-1] * (torch.inf if step == 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) == (step == 2)
    assert losses[-1] < 0.7 * losses[0] and all(p.isfinite().all() for p in transformer.eval().parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_takes_bfloat16_tokens(course, autocast):
    transformer, x, _ = make(course, 65)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss_of(transformer(x.bfloat16()), x).backward()
    close(transformer.retokenize.mean, x[:, 1:].bfloat16().float().mean(dim=0))
    for module in (transformer, make(course)[0]):
        loss_of(module.bfloat16()(x.bfloat16()), x).backward()
        assert {average.dtype for average in module.average} == {torch.float32}  # it moves by 0.05 % in a step


def test_needs_only_the_cells_and_imports_that_readme_names(course):
    namespace, part = {"__name__": "__main__", "myTokenization": course.myTokenization}, 0
    exec(re.sub("(?m)^ +", "", re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]), namespace)
    for cell in json.loads((ROOT / "DL_HW3_StudentID.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if heading := re.search(r"^## Part (\d)", source, re.MULTILINE):
            part = int(heading[1])
        if "definitions" in cell["metadata"].get("tags", []) and (part in (5, 6, 7) or "def orthogonalize" in source):
            exec(source, namespace)
        elif function := re.search(r"^def check_positive.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL):
            exec(function[0], namespace)
    for code in ("", CODE):  # the notebook's own myTransformer, then the other
        exec(code, namespace)
        transformer, x = namespace["myTransformer"](DIM, 3, 4, HIDDEN), torch.randn(2, 65, DIM)
        loss_of(transformer(x), x).backward()
    transformer.__getstate__()


def test_readme_has_the_figures_of_the_results():
    rows = list(csv.DictReader((FOLDER / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert dict(re.findall(r"`(\w+)` \| (\d\d\.\d\d) %", README)) == {
        row["without"]: f"{float(row['validation']):.2f}" for row in rows if row["without"]}
    assert all(f"{float(row['test']):.2f} %" in README for row in rows if row["test"])


def plain_gradients(model):
    for _ in range(2):  # the hooks are there from the second step on
        model.zero_grad()
        model.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    return not 0.5 < torch.linalg.svdvals(last_matrix(model.transformer).grad).median() < 1.5


def no_average(model):
    model.train()(torch.rand(2, 3, 32, 32))
    nn.init.zeros_(last_matrix(model.transformer))
    return not last_matrix(model.transformer.eval()).any()


LEFT_OUT = dict(
    mean=lambda model: model.transformer.retokenize.train().centred(torch.ones(2, 64, 12)).all(),
    picture=lambda model: not hasattr(model.transformer.retokenize, "to_picture"),
    hiding=lambda model: model.transformer.retokenize.train().hide(torch.ones(20, 64, 12)).all(),
    scale=lambda model: last_matrix(model.transformer).abs().max() > 0.6001 / 12 ** 0.5,
    orthogonal=plain_gradients, average=no_average)


@pytest.mark.parametrize("cause", LEFT_OUT)
def test_each_cause_can_be_left_out_alone(protocol, cause):
    assert set(LEFT_OUT) == set(protocol.CAUSES) and not LEFT_OUT[cause](protocol.myViT(**SIZES))
    models = {name: protocol.myViT(**SIZES) for name in LEFT_OUT}
    for model in models.values():
        protocol.leave_out(cause, model, SIZES)
    assert [name for name, left_out in LEFT_OUT.items() if left_out(models[name])] == [cause]


def test_protocol_trains_writes_and_logs(protocol, sample, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol.hw, "load_dataset", lambda name: (list(map(torch.from_numpy, sample)), None))
    monkeypatch.setattr(protocol, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["protocol.py", "--report", "--epochs", "2", "--write", str(tmp_path)])
    protocol.main()
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    close(losses, [2.3926, 2.1982], atol=0.002, rtol=0)  # as ever, to the digits that processors share
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    lines = (tmp_path / "StudentID_submission.csv").read_text().splitlines()
    right = sum(line == f"{i},{label}" for i, (line, label) in enumerate(zip(lines[1:], sample[3]), start=1))
    assert lines[0] == "ImageId,Prediction" and float(row["test"]) == round(100 * right / 30, 2)
    assert row["parameters"] == "222434" and int(row["pt_bytes"]) < 1_000_000
