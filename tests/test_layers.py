import copy
import io
import json
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

B, N, M, DIM, HEADS, HEAD, HIDDEN = 2, 5, 6, 7, 3, 4, 11  # all different; HEADS x HEAD > DIM
TINY = dict(
    stem_dim=4, patch_size=2, merging="patch", dims=(6, 8), depths=(1, 1), heads=(0, 2), dim_head=3, mlp_dims=(9, 10),
    norms=("batch", "layer"))
FINE = TINY | dict(patch_size=1, merging="mean")

close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_definitions_load_alone(tmp_path):
    code = """if True:
        import json, sys, time
        def no_network(event, arguments):
            assert not event.startswith("socket."), event
        sys.addaudithook(no_network)
        namespace = {"__name__": "__main__"}
        for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
            if "definitions" in cell["metadata"].get("tags", []):
                exec("".join(cell["source"]), namespace)
        import torch
        built = [k for k, v in namespace.items() if isinstance(v, (torch.nn.Module, torch.optim.Optimizer))]
        assert not built, f"built when only defined: {built}"
        assert namespace["myFFN"](3, 4)(torch.ones(2, 3)).shape == (2, 3)
        print(time.process_time())"""
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "DL_HW3_StudentID.ipynb")],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30  # of the processor: a busy machine must not make this fail
    assert not list(tmp_path.iterdir())


# Part 4

def test_tokenization_matches_unfold_and_round_trips(hw):
    x = torch.randn(B, 5, 12, 8)  # 3 x 2 patches of 4 x 4
    tokenize = hw.myTokenization(output_dim=7, patch_size=4, channels=5)
    unfolded = F.unfold(x, kernel_size=4, stride=4)  # (b, c p1 p2, n)
    patches = unfolded.reshape(B, 5, 4, 4, 6).permute(0, 4, 2, 3, 1).reshape(B, 6, 80)  # (b, n, p1 p2 c)
    cut, norm, linear = tokenize.to_patch_tokens
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert torch.equal(cut(x), patches)
    back = cut(x).reshape(B, 6, 4, 4, 5).permute(0, 4, 2, 3, 1).reshape(B, 80, 6)
    assert torch.equal(F.fold(back, (12, 8), kernel_size=4, stride=4), x)
    normed = F.layer_norm(patches, (80,), norm.weight, norm.bias)
    close(tokenize(x), normed @ linear.weight.T + linear.bias)


# Part 5

def test_ffn_is_the_formula(hw):
    ffn, x = hw.myFFN(DIM, HIDDEN), torch.randn(B, N, DIM)
    kept = x.clone()
    w1, w2 = ffn.linear1.weight.T, ffn.linear2.weight.T
    assert w1.shape == (DIM, HIDDEN) and w2.shape == (HIDDEN, DIM)
    close(ffn(x), torch.clamp(x @ w1 + ffn.linear1.bias, min=0) @ w2 + ffn.linear2.bias)
    assert torch.equal(x, kept)


# Part 6

@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_scaled_dot_product_attention(hw, batch):
    q, k, v = torch.randn(*batch, N, 3), torch.randn(*batch, M, 3), torch.randn(*batch, M, 4)
    values, weights = hw.scaled_dot_product_attention(q, k, v)
    close(values, F.scaled_dot_product_attention(q, k, v))
    assert weights.shape == (*batch, N, M)
    close(weights.sum(-1), torch.ones(*batch, N))
    assert (weights >= 0).all()
    close(weights @ v, values)


def torch_attention(ours, heads):
    """torch's attention with our weights. It wants heads x head_dim inputs: ours get zeros appended, see `padded`."""
    inner = ours.to_out.in_features
    theirs = nn.MultiheadAttention(inner, heads, batch_first=True)
    nn.init.zeros_(theirs.in_proj_bias)
    with torch.no_grad():
        theirs.in_proj_weight[:, :DIM] = ours.to_qkv.weight
        theirs.out_proj.weight[:DIM] = ours.to_out.weight
        theirs.out_proj.bias[:DIM] = ours.to_out.bias
    return theirs


def padded(x, inner):
    return F.pad(x, (0, inner - DIM))


@pytest.mark.parametrize("context", [None, torch.randn(B, M, DIM, generator=torch.Generator().manual_seed(1))],
                         ids=["self", "context"])
@pytest.mark.parametrize("heads", [None, HEADS], ids=["single", "multi"])
def test_attention_matches_torch(hw, heads, context):
    inner = HEADS * HEAD
    ours = hw.myMultiHeadAttention(DIM, heads, HEAD) if heads else hw.mySingleHeadAttention(DIM, inner)
    theirs = torch_attention(ours, heads or 1)
    x = torch.randn(B, N, DIM)
    out, weights = ours(x, context=context, return_weights=True)
    keys = padded(x if context is None else context, inner)
    expected, expected_weights = theirs(padded(x, inner), keys, keys, average_attn_weights=False)
    close(out, expected[..., :DIM])
    close(weights if heads else weights[:, None], expected_weights)
    close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert torch.equal(ours(x, context), out)


def test_one_head_is_the_single_head(hw):
    single, multi = hw.mySingleHeadAttention(DIM, HEAD), hw.myMultiHeadAttention(DIM, 1, HEAD)
    multi.load_state_dict(single.state_dict())
    x, context = torch.randn(B, N, DIM), torch.randn(B, M, DIM)
    for c in (None, context):
        (a, wa), (b, wb) = single(x, c, return_weights=True), multi(x, c, return_weights=True)
        close(a, b)
        close(wa[:, None], wb)


def test_token_order_does_not_matter_to_attention_and_ffn(hw):
    x, context = torch.randn(B, N, DIM), torch.randn(B, M, DIM)
    order, other = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([5, 2, 0, 1, 4, 3])
    attentions = hw.mySingleHeadAttention(DIM, HEAD), hw.myMultiHeadAttention(DIM, HEADS, HEAD)
    for layer in (hw.myFFN(DIM, HIDDEN), *attentions):
        close(layer(x[:, order]), layer(x)[:, order])
        assert not torch.allclose(layer(x[:, order]), layer(x))
    for attention in attentions:
        close(attention(x[:, order], context[:, other]), attention(x, context)[:, order])


def test_the_courses_name(hw):
    assert hw.myAttention is hw.myMultiHeadAttention


# Part 7

def reference_transformer(transformer, x, heads, dim_head):
    """The same from torch's functions and the transformer's parameters."""
    for block in transformer.blocks:
        first = x.shape[1] % 2  # 65 tokens: a class token before 64
        convolution = block.locality.depthwise
        grid = x[:, first:].transpose(1, 2).reshape(len(x), -1, 8, 8)
        added = F.conv2d(grid, convolution.weight, convolution.bias, padding=1, groups=grid.shape[1])
        x = torch.cat([x[:, :first], x[:, first:] + added.flatten(2).transpose(1, 2)], dim=1)
        if heads:
            y = F.layer_norm(x, x.shape[-1:], block.attention_norm.weight, block.attention_norm.bias)
            qkv = F.linear(y, block.attention.to_qkv.weight).reshape(*y.shape[:2], 3, heads, dim_head)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + F.linear(y, block.attention.to_out.weight, block.attention.to_out.bias)
        y = F.layer_norm(x, x.shape[-1:], block.ffn_norm.weight, block.ffn_norm.bias)
        y = F.linear(y, block.ffn.linear1.weight, block.ffn.linear1.bias).clamp(min=0)
        x = x + F.linear(y, block.ffn.linear2.weight, block.ffn.linear2.bias)
    return x


@pytest.mark.parametrize("heads", [0, HEADS])
@pytest.mark.parametrize("tokens", [64, 65])
def test_transformer_matches_an_independent_computation(hw, tokens, heads):
    transformer, x = hw.myTransformer(DIM, heads, HEAD, HIDDEN, 2, patch_size=None), torch.randn(B, tokens, DIM)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.3)  # ones and zeros would hide the norms' weights and biases
    kept = x.clone()
    close(transformer(x), reference_transformer(transformer, x, heads, HEAD))
    assert torch.equal(x, kept)


def test_transformer_takes_the_courses_arguments(hw):
    x = torch.randn(B, 65, DIM)
    assert hw.myTransformer(dim=DIM, heads=HEADS, dim_head=HEAD, mlp_dim=HIDDEN)(x).shape == x.shape


def last_matrix(transformer):
    return [module for module in transformer.modules() if hasattr(module, "linear1")][-1].linear1.weight


def course_transformer(hw, steps):
    """A Transformer as the template makes it, and its input, after some steps of Adam, in train mode."""
    transformer, x = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, depth=1), torch.randn(4, 65, DIM)
    optimizer = torch.optim.Adam(transformer.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        (transformer(x)[:, 0] - x[:, 1]).square().mean().backward()
        optimizer.step()
    return transformer, x


def test_courses_transformer_ignores_what_is_the_same_in_all_images(hw):
    transformer, x = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN), torch.randn(8, 65, DIM)
    position = 10 * torch.randn(65, DIM)
    outputs = []
    for y in (x, x + position):
        torch.manual_seed(0)  # of what is hidden
        outputs.append(copy.deepcopy(transformer)(y))
    close(*outputs, atol=1e-4, rtol=1e-4)


def test_courses_transformer_returns_the_mean_as_the_class_token(hw):
    transformer, x = course_transformer(hw, 2)
    y = transformer.eval()(x)
    close(y[:, 0], y[:, 1:].mean(dim=1))
    close(transformer(torch.cat([x[:, :1] + 1, x[:, 1:]], dim=1)), y)  # the template's class token says nothing


@pytest.mark.parametrize("tokens", [16, 17, 64])
def test_courses_transformer_takes_any_grid(hw, tokens):
    transformer, x = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, depth=1), torch.randn(B, tokens, DIM)
    assert transformer(x).shape == transformer.eval()(x).shape == x.shape
    with pytest.raises(ValueError, match="x has 49 tokens on the grid; the training had"):
        transformer(torch.randn(B, 49, DIM))


def test_centring_subtracts_the_mean_of_what_was_seen_in_training(hw):
    retokenization, position = hw.myRetokenization(DIM, 4), 10 * torch.randn(64, DIM)
    batches = [position + torch.randn(B, 64, DIM) for _ in range(3)]
    for batch in batches:
        seen = retokenization.centred(batch)
    mean = torch.cat(batches).mean(dim=0)
    close(retokenization.mean, mean)
    close(seen, batches[-1] - mean)
    close(retokenization.eval().centred(batches[0]), batches[0] - mean)
    close(retokenization.mean, mean)


def test_picture_puts_each_token_in_its_place(hw):
    retokenization, x, seen = hw.myRetokenization(DIM, 4).eval(), torch.zeros(1, 65, DIM), []
    retokenization.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x[0, 1 + 8 * 2 + 5] = 1  # third row, sixth column
    retokenization(x)
    pixels = seen[0].abs().sum(dim=(0, 1)).nonzero()
    assert pixels.min(dim=0).values.tolist() == [8, 20] and pixels.max(dim=0).values.tolist() == [11, 23]


def test_tokens_are_hidden_in_training_only(hw):
    retokenization, x, seen = hw.myRetokenization(DIM, 4), torch.randn(50, 65, DIM), []
    retokenization.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    retokenization(x)
    retokenization.eval()(x)
    hidden = [(picture == 0).all(dim=1)[:, ::4, ::4].double().mean() for picture in seen]
    assert 0.08 < hidden[0] < 0.12 and hidden[1] == 0


def test_eval_mode_is_the_average_of_the_weights(hw):
    transformer, x = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, depth=1), torch.randn(4, 65, DIM)
    weight = last_matrix(transformer)
    optimizer, expected = torch.optim.Adam(transformer.parameters(), lr=0.003), weight.detach().clone()
    for step in range(1, 6):
        transformer(x)[:, 0].square().mean().backward()
        expected.lerp_(weight.detach(), 9 / (step + 9))
        optimizer.step()
    last = weight.detach().clone()
    assert weight is last_matrix(transformer.eval())  # the optimizer still holds it
    close(weight.detach(), expected)
    assert torch.equal(last_matrix(transformer.train().eval().train()), last)
    statistics = transformer.blocks.retokenize.stem[1].running_var.clone()
    assert not torch.equal(transformer.eval().blocks.retokenize.stem[1].running_var, statistics)


def test_courses_transformer_starts_with_smaller_weights(hw):
    for patch_size, scale in ((None, 1), (4, 0.6)):
        weight = last_matrix(hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, patch_size=patch_size))
        assert 0.9 * scale < weight.abs().max() * DIM ** 0.5 < scale + 1e-6


def test_memory_of_the_average(hw):
    module = hw.mySelfAveraging()
    module.weight = nn.Parameter(torch.zeros(3))
    expected = 1.0
    for step in range(1, 21):
        nn.init.constant_(module.weight, step)
        module.observe(keep=0.5)
        expected += (1 - min(0.5, step / (step + 9))) * (step - expected)
    close(module.eval().weight.detach(), torch.full((3,), expected))


def test_average_follows_the_module_and_forgets_at_a_load(hw):
    transformer, x = course_transformer(hw, 2)
    other, _ = course_transformer(hw, 3)
    transformer.double()(x.double())  # as .to(device) between two steps
    assert transformer.float()(x).dtype == torch.float32
    transformer.load_state_dict(other.state_dict())
    assert torch.equal(last_matrix(transformer.eval()), last_matrix(other))
    transformer.train()(x)
    assert all(len(p._backward_hooks or []) == (p.ndim == 2) for p in transformer.parameters())


def test_gradient_hook_orthogonalizes_the_running_mean(hw):
    g1, g2 = torch.randn(2, DIM, HIDDEN)
    hook = hw.orthogonal_gradient(torch.zeros(DIM, HIDDEN))
    close(hook(g1), hw.orthogonalize(g1))
    close(hook(g2), hw.orthogonalize(0.1 * g2 + 0.9 * (0.09 * g1 + 0.1 * g2)))


@pytest.mark.parametrize("mode", [True, False])
def test_a_saved_transformer_is_the_average_and_trains_on(hw, mode):
    transformer, x = course_transformer(hw, 3)
    weights = [p.detach().clone() for p in transformer.parameters()]
    file = io.BytesIO()
    torch.save(transformer.train(mode), file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    assert all(map(torch.equal, transformer.train().parameters(), weights))
    assert torch.equal(saved.eval()(x), transformer.eval()(x))
    (saved.train()(x)[:, 0] - x[:, 1]).square().mean().backward()
    singular = torch.linalg.svdvals(last_matrix(saved).grad)
    assert 0.6 < singular[-2] and singular[0] < 1.3  # the hook is back; LN leaves one direction without gradient


def test_averages_are_neither_parameters_nor_buffers(hw):
    transformer, _ = course_transformer(hw, 1)
    fresh = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, depth=1)
    assert [t.shape for t in transformer.state_dict().values()] == [t.shape for t in fresh.state_dict().values()]


def test_gradient_hook_leaves_our_own_model_alone(hw):
    transformer, x = hw.myTransformer(DIM, HEADS, HEAD, HIDDEN, depth=1, patch_size=None), torch.randn(4, 65, DIM)
    transformer(x).square().mean().backward()
    assert not any(p._backward_hooks for p in transformer.parameters())
    assert not any(isinstance(module, hw.mySelfAveraging) for module in transformer.modules())


def test_parts_5_to_7_need_only_what_readme_names(hw):
    """So that they can be taken into the course's template."""
    cells = json.loads((ROOT / "DL_HW3_StudentID.ipynb").read_text(encoding="utf-8"))["cells"]
    part, namespace = 0, {"__name__": "__main__", "myTokenization": hw.myTokenization}
    exec("import copy, math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
         "from einops import einsum, rearrange", namespace)
    for cell in cells:
        source = "".join(cell["source"])
        if heading := re.search(r"^## Part (\d)", source, re.MULTILINE):
            part = int(heading[1])
        if (part in (5, 6, 7) or cell["id"] == "checks") and "definitions" in cell["metadata"].get("tags", []):
            exec(source, namespace)
    x = torch.randn(2, 65, DIM)
    transformer = namespace["myTransformer"](DIM, HEADS, HEAD, HIDDEN)
    y = transformer(x)
    y.sum().backward()
    assert y.shape == x.shape == copy.deepcopy(transformer).eval()(x).shape
    assert namespace["myAttention"](DIM, HEADS, HEAD)(x, context=x[:, :9]).shape == x.shape


def test_locality_leaves_the_class_token_alone(hw):
    transformer, x = hw.myTransformer(DIM, 0, HEAD, HIDDEN, patch_size=None), torch.randn(B, 65, DIM)
    other = torch.cat([x[:, :1], torch.randn(B, 64, DIM)], dim=1)
    close(transformer(x)[:, 0], transformer(other)[:, 0])
    assert not torch.allclose(transformer(x)[:, 1:], transformer(other)[:, 1:])


def test_locality_reaches_the_neighbours_on_the_grid_only(hw):
    locality, x = hw.myLocality(DIM), torch.randn(1, 64, DIM)
    changed = x.clone()
    changed[0, 8 * 3 + 7] += 1  # row 3, last column: its neighbours in the sequence are not all neighbours on the grid
    differs = (locality(x) != locality(changed)).any(-1)[0].reshape(8, 8)
    assert differs.nonzero().tolist() == [[r, c] for r in (2, 3, 4) for c in (6, 7)]


# Part 8

@pytest.mark.parametrize("arguments", [TINY, FINE], ids=["patches", "means"])
def test_vit_gradients_reach_every_parameter(hw, arguments):
    model = hw.myViT(**arguments)
    F.cross_entropy(model(torch.rand(4, 3, 16, 16)), torch.arange(4)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("side, classes", [(16, 4), (32, 10)])
def test_vit_shapes(hw, side, classes):
    model = hw.myViT(num_classes=classes, **TINY)
    assert model(torch.rand(B, 3, side, side)).shape == (B, classes)


@pytest.mark.parametrize("arguments, first", [(TINY, 2), (FINE, 1), (FINE | dict(patch_size=4), 4)])
def test_the_second_stage_has_a_quarter_of_the_tokens(hw, arguments, first):
    model, seen = hw.myViT(**arguments), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(torch.rand(B, 3, 32, 32))
    assert seen == [(32 // first) ** 2, (16 // first) ** 2]


def test_the_network_is_as_described(hw):
    model, seen = hw.myViT(), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.rand(B, 3, 32, 32))
    assert seen == [(1024, 32), (256, 64), (64, 96)]
    assert sum(t.numel() for t in [*model.parameters(), *model.buffers()]) == 245_114


def test_tokens_are_merged_by_their_mean(hw):
    model, grids = hw.myViT(**FINE), []
    for stage in model.stages:
        stage.register_forward_pre_hook(lambda module, inputs: grids.append(inputs[0]))
        stage.register_forward_hook(lambda module, inputs, output: grids.append(output))
    model(torch.rand(B, 3, 8, 8))
    _, tokens, merged, _ = grids                       # of the first stage, then what the second one gets
    x = tokens.reshape(B, 8, 8, 6).permute(0, 3, 1, 2)
    close(merged, (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4)


def test_batch_norm_scales_features_over_all_tokens_and_remembers(hw):
    norm, x = hw.myBatchNorm(DIM), 3 * torch.randn(B, N, DIM) + torch.arange(float(DIM))
    nn.init.normal_(norm.batch_norm.weight)
    nn.init.normal_(norm.batch_norm.bias)
    rows = x.reshape(B * N, DIM)
    scale, bias = norm.batch_norm.weight, norm.batch_norm.bias
    close(norm(x).reshape(B * N, DIM), (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt() * scale + bias)
    for _ in range(200):
        norm(x)
    one = norm.eval()(x[:1, :1])                       # a single token, by what was seen in training
    close(one[0, 0], (rows[0] - rows.mean(0)) / (rows.var(0) + 1e-5).sqrt() * scale + bias)


@pytest.mark.parametrize("norms", [("batch", "layer"), ("layer", "batch"), ("layer", "layer")])
def test_each_stage_has_its_norm(hw, norms):
    model = hw.myViT(**TINY | dict(norms=norms))
    for norm, (_, transformer) in zip(norms, model.stages):
        used = [m for m in (transformer.blocks[0].attention_norm, transformer.blocks[0].ffn_norm) if m is not None]
        assert all(isinstance(m, hw.myBatchNorm if norm == "batch" else nn.LayerNorm) for m in used)
    model.stem = model.stem[:1]                        # without its own batch normalisation
    one, two = torch.rand(2, 1, 3, 16, 16)
    alone, together = model.train()(one), model(torch.cat([one, two]))[:1]
    assert torch.allclose(alone, together, atol=1e-6) == ("batch" not in norms)  # which looks at other pictures, too


def test_vit_normalises_inside(hw):
    model = hw.myViT(**TINY).eval()
    x = torch.rand(B, 3, 16, 16)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    normalised = (x - mean[:, None, None]) / std[:, None, None]
    expected = model(x)
    model.mean.zero_()
    model.std.fill_(1)
    close(model(normalised), expected)


def test_attention_maps(hw, sample):
    model = hw.myViT(**TINY | dict(depths=(1, 2)))
    maps = hw.attention_maps(model, torch.from_numpy(sample[2]).repeat(4, 1, 1, 1))  # more than one batch for predict
    assert [tuple(m.shape) for m in maps] == [(120, 2, 64, 64)] * 2  # none from the stage without attention
    close(maps[1].sum(-1), torch.ones(120, 2, 64))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_size_table_counts_every_number_once(hw):
    model = hw.myViT(**TINY)
    table = hw.size_table(model)
    numbers = sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    assert table.loc["total", "bytes"] == 4 * numbers == table.bytes[:-1].sum()


# refused

REFUSED = [
    (lambda hw: hw.myTokenization(7, 4, 3)(torch.rand(2, 3, 12, 10)), "x has shape (2, 3, 12, 10)", "patch size 4"),
    (lambda hw: hw.myTokenization(7, 4, 3)(torch.rand(2, 3, 10, 12)), "x has shape (2, 3, 10, 12)", "patch size 4"),
    (lambda hw: hw.myTokenization(7, 4, 3)(torch.rand(2, 1, 12, 12)), "x has shape (2, 1, 12, 12)", "(batch, 3,"),
    (lambda hw: hw.myTokenization(7, 4, 3)(torch.rand(3, 12, 12)), "x has shape (3, 12, 12)", "(batch, 3,"),
    (lambda hw: hw.myFFN(0, 5), "input_dim is 0", ""),
    (lambda hw: hw.myFFN(5, 2.5), "hidden_dim is 2.5", ""),
    (lambda hw: hw.myFFN(6, 11)(torch.rand(2, 5, 7)), "x has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.scaled_dot_product_attention(torch.rand(5, 3), torch.rand(6, 4), torch.rand(6, 3)),
     "(5, 3), (6, 4), (6, 3)", "q and k"),
    (lambda hw: hw.scaled_dot_product_attention(torch.rand(5, 3), torch.rand(6, 3), torch.rand(7, 3)),
     "(5, 3), (6, 3), (7, 3)", "k and v"),
    (lambda hw: hw.mySingleHeadAttention(-1, 4), "input_dim is -1", ""),
    (lambda hw: hw.mySingleHeadAttention(6, 0), "head_dim is 0", ""),
    (lambda hw: hw.mySingleHeadAttention(6, 4)(torch.rand(2, 5, 7)), "x has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.mySingleHeadAttention(6, 4)(torch.rand(2, 5, 6), torch.rand(2, 5, 7)),
     "context has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.myMultiHeadAttention(6, 0, 4), "heads is 0", ""),
    (lambda hw: hw.myMultiHeadAttention(6, 3, "4"), "head_dim is '4'", ""),
    (lambda hw: hw.myMultiHeadAttention(6, 3, 4)(torch.rand(2, 5, 7)), "x has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.myMultiHeadAttention(6, 3, 4)(torch.rand(2, 5, 6), torch.rand(2, 5, 7)),
     "context has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.myLocality(0), "dim is 0", ""),
    (lambda hw: hw.myTokenization(5, 0, 3), "patch_size is 0", ""),
    (lambda hw: hw.myTransformer(6, 3, 4, 11, patch_size=None)(torch.rand(2, 63, 6)), "x has 63 tokens", "square"),
    (lambda hw: hw.myTransformer(6, 3, 4, 11)(torch.rand(2, 63, 6)), "x has 63 tokens", "square"),
    (lambda hw: hw.myTransformer(6, 3, 4, 11, patch_size=3), "patch_size is 3", "even"),
    (lambda hw: hw.myTransformer(6, 3, 4, 11)(torch.rand(64, 6)), "x has shape (64, 6)", "(batch, tokens, 6)"),
    (lambda hw: hw.myTransformer(6, 3, 4, 11)(torch.rand(2, 64, 7)), "x has shape (2, 64, 7)", "(batch, tokens, 6)"),
    (lambda hw: hw.myTransformer(6, -1, 4, 11), "heads is -1", ""),
    (lambda hw: hw.myTransformer(6, 3, 4, 0), "hidden_dim is 0", ""),
    (lambda hw: hw.myTransformer(6, 3, 4, 11, depth=0), "depth is 0", ""),
    (lambda hw: hw.myTransformer(6, 3, 4, 11, norm="group"), "norm is 'group'", "'layer', 'batch'"),
    (lambda hw: hw.myBatchNorm(6)(torch.rand(2, 5, 7)), "x has shape (2, 5, 7)", "must be 6"),
    (lambda hw: hw.myViT(dims=(64,)), "dims (64,)", "one length"),
    (lambda hw: hw.myViT(norms=("batch",)), "norms ('batch',)", "one length"),
    (lambda hw: hw.myViT(**TINY)(torch.rand(2, 1, 16, 16)), "images has shape (2, 1, 16, 16)", "(batch, 3, side"),
    (lambda hw: hw.myViT(**TINY)(torch.rand(2, 3, 16, 12)), "images has shape (2, 3, 16, 12)", "(batch, 3, side"),
    (lambda hw: hw.myViT(**TINY)(torch.rand(3, 16, 16)), "images has shape (3, 16, 16)", "(batch, 3, side"),
    (lambda hw: hw.myViT(**TINY)(torch.rand(2, 3, 18, 18)), "(2, 6, 9, 9)", "patch size 2"),
    (lambda hw: hw.myViT(**FINE)(torch.rand(2, 3, 9, 9)), "(2, 6, 9, 9)", "must be even"),
    (lambda hw: hw.myViT(merging="max"), "merging is 'max'", "'mean' or 'patch'"),
]


@pytest.mark.parametrize("call, argument, rule", REFUSED, ids=[argument for _, argument, _ in REFUSED])
def test_refused(hw, call, argument, rule):
    with pytest.raises(ValueError, match=f"{re.escape(argument)}.*{re.escape(rule)}"):
        call(hw)


# what trains

@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_muon_matches_torchs(hw, shape):
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours_step = hw.Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    theirs_step = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.5)
    for gradient in gradients:
        before = ours.detach().clone(), theirs.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours_step.step()
        theirs_step.step()
        moved = ours.detach() - before[0], theirs.detach() - before[1]
        assert (moved[0] - moved[1]).norm() < 0.03 * moved[1].norm()  # torch's works in bfloat16


@pytest.mark.parametrize("arguments", [TINY, FINE], ids=["patches", "means"])
def test_gradients_lie_in_memory_as_tokens_do(hw, arguments):
    model, layouts = hw.myViT(**arguments), []
    for stage in model.stages:
        stage[1].register_full_backward_hook(lambda module, inner, outer: layouts.extend((*inner, *outer)))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert len(layouts) == 4 and all(gradient.is_contiguous() for gradient in layouts)


def test_the_optimizers_share_all_parameters(hw):
    model = hw.myViT(**TINY)
    muon, adamw = hw.make_optimizers(model, hw.Hyperparameters())
    mine, others = ([p for g in o.param_groups for p in g["params"]] for o in (muon, adamw))
    assert {id(p) for p in [*mine, *others]} == {id(p) for p in model.parameters()}
    assert len(mine) + len(others) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in mine) and any(p is model.head[1].weight for p in others)


def test_schedule_rises_and_falls_in_straight_lines(hw):
    shares = torch.tensor([hw.schedule(step, 1000, 0.2) for step in range(1001)], dtype=torch.double)
    close(shares[[0, 199, 200, 600, 1000]], torch.tensor([0.005, 1, 1, 0.5, 0], dtype=torch.double))
    assert shares.max() == 1
    close(shares[:200].diff(), torch.full((199,), 1 / 200, dtype=torch.double))
    close(shares[200:].diff(), torch.full((800,), -1 / 800, dtype=torch.double))


@pytest.mark.parametrize("steps, warmup", [(1, 0.15), (1, 0.0), (1, 1.0), (5, 0.0), (5, 1.0), (36 * 352, 0.15)])
def test_schedule_never_stalls_nor_exceeds_its_peak(hw, steps, warmup):
    shares = [hw.schedule(step, steps, warmup) for step in range(steps)]
    assert all(0 < share < 1.001 for share in shares) and max(shares) > 0.99
