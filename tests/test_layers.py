import copy
import random
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from tiny import MODEL, hyperparameters

B, N, M, DIM, HEADS, HEAD, HIDDEN = 2, 5, 6, 7, 3, 4, 11  # all different
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_definitions_load_alone(tmp_path):
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        sys.addaudithook(lambda event, _: sys.exit(event) if event.startswith("socket.") else None)  # no network
        import run, torch
        defined = vars(run.load_definitions()).items()
        assert not [k for k, v in defined if isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]"""
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


# Parts 4 to 8, against the same from torch's functions and the layer's parameters

def normed(module, x, kind):
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)
    rows, seen = x.flatten(0, -2), (module.running_mean, module.running_var)
    mean, var = (rows.mean(0), rows.var(0, correction=0)) if module.training else seen
    return (x - mean) / (var + 1e-5).sqrt() * module.weight + module.bias


def attention_reference(layer, x, context, heads):
    inputs = zip((x, context, context), layer.to_qkv.weight.chunk(3))
    q, k, v = (F.linear(t, weight).unflatten(2, (heads, -1)).transpose(1, 2) for t, weight in inputs)
    values = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    one_hot = torch.eye(k.shape[2]).expand(*k.shape[:3], -1)                               # as values: the weights
    return F.linear(values, layer.to_out.weight, layer.to_out.bias), F.scaled_dot_product_attention(q, k, one_hot)


def transformer_reference(transformer, x, heads, kind):
    first, side = x.shape[1] % 2, int(x.shape[1] ** 0.5)                                   # 65: a class token before 64
    for block in transformer.blocks:
        filters, one, two = block.locality.depthwise, block.ffn.linear1, block.ffn.linear2
        grid = x[:, first:].transpose(1, 2).unflatten(2, (side, side))
        added = F.conv2d(grid, filters.weight, filters.bias, padding=1, groups=grid.shape[1]).flatten(2)
        x = torch.cat([x[:, :first], x[:, first:] + added.transpose(1, 2)], dim=1)
        if heads:
            y = normed(block.attention_norm, x, kind)
            x = x + attention_reference(block.attention, y, y, heads)[0]
        x = x + F.linear(F.linear(normed(block.ffn_norm, x, kind), one.weight, one.bias).relu(), two.weight, two.bias)
    return x


def shaken(module):
    """The module with random numbers everywhere: ones and zeros would hide what they are factors and terms of."""
    for tensor in filter(torch.is_floating_point, module.state_dict().values()):
        tensor.copy_(torch.rand(tensor.shape) + 0.1 if tensor.ndim == 1 else 0.3 * torch.randn(tensor.shape))
    return module


@pytest.mark.parametrize("heads", [None, HEADS], ids=["single", "multi"])
def test_attention(hw, heads):
    layer = hw.myAttention(DIM, heads, HEAD) if heads else hw.mySingleHeadAttention(DIM, HEAD)
    x, context = torch.randn(B, N, DIM), torch.randn(B, M, DIM)
    for given in (None, context):
        expected, alpha = attention_reference(layer, x, x if given is None else given, heads or 1)
        out, weights = layer(x, given, return_weights=True)
        close(out, expected)
        close(weights, alpha if heads else alpha[:, 0])
        assert torch.equal(layer(x, context=given), out)


def test_large_queries_do_not_overflow_in_float16(hw):
    q, v = torch.full((1, N, 64), 50, dtype=torch.float16), torch.randn(1, N, 3).half()
    values, weights = hw.scaled_dot_product_attention(q, q, v)
    assert weights.isfinite().all()
    close(values, F.scaled_dot_product_attention(q, q, v))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("heads", [0, HEADS])
@pytest.mark.parametrize("tokens", [64, 65], ids=["grid", "class token"])
def test_transformer(hw, tokens, heads, norm):
    transformer, x = shaken(hw.myTransformer(DIM, heads, HEAD, HIDDEN, depth=2, norm=norm)), torch.randn(B, tokens, DIM)
    for mode in (True, False):
        close(transformer.train(mode)(x), transformer_reference(transformer, x, heads, norm))


def test_vit(hw):
    model, pictures = shaken(hw.myViT(**MODEL)), torch.randint(256, (B, 3, 16, 16)).byte()
    x = pictures / 255
    assert torch.equal(model(pictures), model(x)) and model(x).shape == (B, 10)
    for dtype in (torch.float16, torch.float64):
        assert copy.deepcopy(model).to(dtype)(pictures).dtype == dtype
    F.cross_entropy(model(x), torch.arange(B)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    views = [model.eval().one_view(view) for view in (x, x.flip(3))]
    close(hw.single_view(model)(x), views[0])
    close(model(x), (sum(view.softmax(dim=1) for view in views) / 2).log())                # so a softmax gives the mean


@pytest.mark.parametrize("low, high, told", [(-0.3, 1.2, 0), (0, 255, 1), (-1, 1, 1)])
def test_input_far_beyond_0_and_1_gets_one_warning(hw, recwarn, low, high, told):
    model, x = hw.myViT(**MODEL).eval(), torch.linspace(low, high, B * 3 * 16 * 16).view(B, 3, 16, 16)
    for _ in range(3):
        model(x)
    assert len(recwarn) == told and all("expected is uint8, or floats in [0, 1]" in str(w.message) for w in recwarn)


def test_another_default_device_changes_nothing(hw):
    """"meta" as a trap: what is made there has no values, so nothing of it may meet what is on the CPU."""
    h, generator = hyperparameters(hw, epochs=1, cutmix_until=1), torch.Generator().manual_seed(0)
    model, images, labels = hw.myViT(**MODEL), torch.randint(256, (20, 32, 32, 3)).byte(), torch.arange(20) % 10
    averaged = copy.deepcopy(model)
    torch.set_default_device("meta")
    try:
        kept, held = hw.split_validation(labels, held_out=10)
        x = hw.to_input(hw.augment(images[kept], labels[kept] > 4, generator))
        x = hw.corrupt(hw.cutmix(x, labels[kept], random.Random(0))[0], 1, generator)
        loss, _ = hw.train_epoch(model, averaged, hw.make_optimizers(model, h), images, labels, 1, h)
        answers = hw.predict(hw.recompute_statistics(averaged, images), images)
        again = hw.unpack(*hw.pack(hw.round_weights(averaged, images, (9, 9)), (9, 9)))
    finally:
        torch.set_default_device(None)
    assert {t.device.type for t in (kept, held, x, answers, again.std, *again.parameters())} == {"cpu"} and 1 < loss < 5


REFUSED = {
    "myTokenization(7, 4, 3)(rand(2, 3, 12, 10))": "x has shape (2, 3, 12, 10) ... patch size 4",
    "mySingleHeadAttention(-1, 4)": "input_dim is -1",
    "myFFN(6, 11)(rand(7))": "x has shape (7,) ... must be 6",
    "myFFN(6, 11)(rand(2, 5, 7))": "x has shape (2, 5, 7) ... must be 6",
    "myMultiHeadAttention(6, 3, 4)(rand(2, 5, 6), rand(2, 5, 7))": "context has shape (2, 5, 7) ... must be 6",
    "myTransformer(6, 3, 4, 11)(rand(2, 63, 6))": "x has 63 tokens ... square",
    "myViT()(rand(2, 3, 16, 12))": "images has shape (2, 3, 16, 12) ... (b, 3, n, n), n a multiple of 4",
}


@pytest.mark.parametrize("call", REFUSED)
def test_refused(hw, call):
    with pytest.raises(ValueError, match=re.escape(REFUSED[call]).replace(r"\ \.\.\.\ ", ".*")):
        eval(call, vars(hw) | dict(rand=torch.rand))


def test_adapt_gives_a_copy_with_the_statistics_of_the_pictures(hw):
    model, brightness = hw.myViT(**MODEL).eval(), torch.linspace(50, 200, 600)  # sorted, in more than one batch
    images = brightness[:, None, None, None].expand(-1, 32, 32, 3).byte()
    before, twin = copy.deepcopy(model.state_dict()), hw.adapt(model, images)
    assert all(map(torch.equal, model.state_dict().values(), before.values())) and not twin.training
    seen = model.stem[0]((hw.to_input(images) - model.mean) / model.std)
    close(twin.stem[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
