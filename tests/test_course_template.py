"""course_template/: what its Transformer does about a locked template, and what its protocol leaves out of that."""

import csv
import importlib
import io
import re
import sys

import nbformat
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.testing import assert_close as close

FOLDER = ROOT / "course_template"
CODE, README = ((FOLDER / name).read_text(encoding="utf-8") for name in ("parts_5_to_7.py", "README.md"))
DIM, HIDDEN, SIZES = 7, 11, dict(dim=12, heads=3, head_dim=4, mlp_dim=7)


@pytest.fixture
def protocol(monkeypatch):
    """A fresh protocol.py: leave_out changes the classes that it has loaded."""
    torch.manual_seed(0)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # it loads the notebook under this name
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "protocol", raising=False)
    return importlib.import_module("protocol")


def make(protocol, tokens=17):
    transformer = protocol.hw.myTransformer(DIM, 3, 4, HIDDEN, depth=1)
    return transformer, torch.randn(4, tokens, DIM), torch.optim.Adam(transformer.parameters(), lr=0.003)


def loss_of(y, x):
    return (y[:, 0].float() - x[:, 1].float()).square().mean()


def last_matrix(transformer):
    return transformer.blocks[-1].ffn.linear1.weight


def test_the_class_token_says_nothing_and_becomes_the_mean(protocol):
    transformer, x, _ = make(protocol)
    transformer.eval()
    assert torch.equal(y := transformer(x + (torch.arange(17) == 0)[:, None]), transformer(x))
    assert y.shape == x.shape and torch.equal(y[:, 0], y[:, 1:].mean(dim=1))


@pytest.mark.parametrize("mode", [True, False])
def test_a_saved_transformer_is_the_average_and_trains_on(protocol, mode):
    transformer, x, optimizer = make(protocol)
    for _ in range(3):
        loss_of(transformer(x), x).backward()
        optimizer.step()
    weights, file = [p.detach().clone() for p in transformer.parameters()], io.BytesIO()
    torch.save(transformer.train(mode), file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert all(map(torch.equal, transformer.train().parameters(), weights))
    assert torch.equal(saved.eval()(x), transformer.eval()(x))
    assert not torch.equal(last_matrix(saved), last_matrix(transformer.train()))
    loss_of(saved.train()(x), x).backward()
    singular = torch.linalg.svdvals(last_matrix(saved).grad)
    assert 0.6 < singular[-2] and singular[0] < 1.3  # the hook is back; LN leaves one direction without gradient


def test_gradient_hook_orthogonalizes_the_running_mean_of_finite_gradients(protocol):
    g1, g2 = torch.randn(2, DIM, HIDDEN)
    hook, orthogonalize = protocol.hw.orthogonal_gradient(torch.zeros(DIM, HIDDEN)), protocol.hw.orthogonalize
    close(hook(g1), orthogonalize(g1))
    assert torch.equal(hook(g1 * torch.inf), g1 * torch.inf)  # a GradScaler has to see it
    close(hook(g2), orthogonalize(0.1 * g2 + 0.9 * (0.09 * g1 + 0.1 * g2)))


def test_float16_with_a_grad_scaler_survives_an_overflow(protocol):
    transformer, x, optimizer = make(protocol, 5)
    scaler, losses = torch.amp.GradScaler("cpu"), []
    for step in range(12):
        with torch.autocast("cpu", torch.float16):
            losses.append(loss_of(transformer(x), x))
        optimizer.zero_grad()
        scaler.scale(losses[-1] * (torch.inf if step == 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert losses[-1] < 0.7 * losses[0] and all(p.isfinite().all() for p in transformer.eval().parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_takes_bfloat16_tokens(protocol, autocast):
    transformer, x, _ = make(protocol, 65)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss_of(transformer(x.bfloat16()), x).backward()
    close(transformer.retokenize.mean, x[:, 1:].bfloat16().float().mean(dim=0))


def test_needs_only_the_cells_and_imports_that_readme_names(protocol):
    namespace, part = {"__name__": "__main__", "myTokenization": protocol.hw.myTokenization}, 0
    exec(re.sub("(?m)^ +", "", re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]), namespace)
    for cell in nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4).cells:
        if heading := re.search(r"^## Part (\d)", cell.source, re.MULTILINE):
            part = int(heading[1])
        if "definitions" in cell.metadata.get("tags", []) and (part in (5, 6, 7) or "def orthogonalize" in cell.source):
            exec(cell.source, namespace)
        elif function := re.search(r"^def check_positive.*?(?=^\S|\Z)", cell.source, re.MULTILINE | re.DOTALL):
            exec(function[0], namespace)
    exec(CODE, namespace)
    transformer, x = namespace["myTransformer"](DIM, 3, 4, HIDDEN), torch.randn(2, 65, DIM)
    for _ in range(2):
        loss_of(transformer(x), x).backward()


def test_readme_has_the_figures_of_the_results():
    rows = list(csv.DictReader((FOLDER / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert dict(re.findall(r"`(\w+)` \| (\d\d\.\d\d) %", README)) == {
        row["without"]: f"{float(row['validation']):.2f}" for row in rows if row["without"]}
    assert all(f"{float(row['test']):.2f} %" in README for row in rows if row["test"])


@pytest.mark.parametrize("cause", ["nothing", "mean", "picture", "hiding", "scale", "orthogonal", "average"])
def test_each_cause_can_be_left_out_alone(protocol, cause):
    model, ones, gradient = protocol.myViT(**SIZES), torch.ones(20, 64, 12), torch.randn(12, 7)
    if cause != "nothing":
        protocol.leave_out(cause, model, SIZES)
    model.train()(torch.rand(2, 3, 32, 32))
    retokenize, matrix = model.transformer.retokenize, last_matrix(model.transformer)
    lacks = dict(
        mean=retokenize.centred(ones).equal(ones), picture=not hasattr(retokenize, "to_picture"),
        hiding=retokenize.hide(ones).all(), scale=matrix.abs().max() > 0.6001 / 12 ** 0.5,
        orthogonal=protocol.hw.orthogonal_gradient(torch.zeros(12, 7))(gradient).equal(gradient))
    nn.init.zeros_(matrix)
    lacks["average"] = not last_matrix(model.transformer.eval()).any()
    assert set(lacks) == set(protocol.CAUSES) and [name for name in lacks if lacks[name]] == [cause] * (cause in lacks)
