"""What the benchmarks leave out is really left out, and nothing else is."""

import csv
import importlib
import importlib.util
import json
import sys

import pytest
import torch
from conftest import ROOT

ARGUMENTS = dict(dim=12, heads=3, head_dim=4, mlp_dim=7)


@pytest.fixture
def protocol(monkeypatch):
    """A fresh course_protocol.py: leave_out changes the classes that it has loaded."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # it loads the notebook under this name
    spec = importlib.util.spec_from_file_location("course_protocol", ROOT / "benchmarks" / "course_protocol.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(model):
    """One step of training by gradient descent; returns the parameters as they were before it."""
    before = [p.detach().clone() for p in model.parameters()]
    model.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    return before


def nothing_subtracted(model):
    x = torch.randn(2, 64, 12)
    return torch.equal(model.transformer.blocks.retokenize.train().centred(x), x)


def no_picture(model):
    model(torch.rand(2, 3, 32, 32))
    return not hasattr(model.transformer.blocks.retokenize, "to_picture")


def nothing_hidden(model):
    return model.transformer.blocks.retokenize.train().hide(torch.ones(20, 64, 12)).min() == 1


def full_size(model):
    weight = model.transformer.blocks.blocks[0].ffn.linear1.weight  # uniform, up to 1 / sqrt(12)
    return weight.abs().max() > 0.25


def plain_gradients(model):
    step(model)                                              # the hooks are there from the second step on
    model.zero_grad()
    step(model)
    singular = torch.linalg.svdvals(model.transformer.blocks.blocks[0].ffn.linear1.weight.grad)
    return not 0.5 < singular.median() < 1.5


def no_average(model):
    step(model)
    step(model)
    last = [p.detach().clone() for p in model.parameters()]
    return all(map(torch.equal, model.eval().parameters(), last))


LEFT_OUT = dict(mean=nothing_subtracted, picture=no_picture, hiding=nothing_hidden, scale=full_size,
                orthogonal=plain_gradients, average=no_average)


@pytest.mark.parametrize("cause", LEFT_OUT)
def test_each_cause_of_the_course_template_can_be_left_out_alone(protocol, cause):
    def left_out(name):
        torch.manual_seed(0)
        model = protocol.myViT(**ARGUMENTS)
        if leave_out:
            protocol.leave_out(cause, model, ARGUMENTS)
        return LEFT_OUT[name](model)

    assert set(LEFT_OUT) == set(protocol.CAUSES)
    leave_out = False
    assert not left_out(cause)
    leave_out = True
    assert [name for name in LEFT_OUT if left_out(name)] == [cause]


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("ablations")


def kinds(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize("network", ["ours", "coarse"])
def test_each_ablated_network_lacks_its_part_alone(ablations, network):
    makes = {part: make for part, (make, *_) in ablations.parts(ablations.NETWORKS[network]).items()}
    whole = makes["nothing"]()
    lost = {part: kinds(whole) - kinds(make()) for part, make in makes.items()}
    assert lost["attention"] == lost["attention, a wider FFN instead"] == {"myMultiHeadAttention"}
    assert lost["locality"] == {"myLocality"}
    assert lost["stem"] == {"BatchNorm2d", "ReLU"}  # convolutions are in locality, too
    assert not lost["stem, one pixel at a time instead"]
    assert makes["stem, one pixel at a time instead"]().stem[0].kernel_size == (1, 1) != whole.stem[0].kernel_size
    other = makes["merging as it is, the other kind instead"]().arguments
    assert [name for name in other if other[name] != whole.arguments[name]] == ["merging"]
    sizes = {part: sum(p.numel() for p in make().parameters()) for part, make in makes.items()}
    assert abs(sizes["attention, a wider FFN instead"] - sizes["nothing"]) < 300 < sizes["nothing"] - sizes["attention"]
    assert ("first stage" in makes) == (network == "ours")
    if network == "ours":
        tokens = []
        for model in (whole, makes["first stage"]()):
            model.stages[-1].register_forward_hook(lambda module, inputs, output: tokens.append(output.shape))
            model(torch.rand(2, 3, 32, 32))
        assert tokens[0] == tokens[1] and len(model.stages) == len(whole.stages) - 1


@pytest.mark.parametrize("side", [24, 32])
def test_ablated_networks_take_pictures_of_both_sizes(ablations, side):
    for network in ablations.NETWORKS.values():
        for make, *_ in ablations.parts(network).values():
            assert make()(torch.rand(2, 3, side, side)).shape == (2, 10)


def test_ablated_trainings_differ_from_the_recipe_in_one_thing(ablations):
    recipe, parts = vars(ablations.hw.Hyperparameters()), ablations.parts({})
    as_it_is = parts["nothing"][0]().arguments
    changes = [(optimizer, changed) for part, (make, optimizer, changed) in parts.items()
               if part in ("Muon, AdamW instead", "running average", "hole", "shift", "mirror")
               and make().arguments == as_it_is]
    assert len(changes) == 5
    for optimizer, changed in changes:
        assert (optimizer != "Muon") + len(changed) == 1
        assert all(recipe[name] != value for name, value in changed.items())


@pytest.mark.parametrize("network", ["ResNet-20", "CCT-2/3x2", "template-ViT"])
def test_peers_are_logged_and_left_for_shift_py(ablations, monkeypatch, tmp_path, sample, network):
    peers, shift = sys.modules["peers"], importlib.import_module("shift")
    images, labels, test_images, test_labels = (torch.from_numpy(array) for array in sample)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers.hw, "load_cifar10", lambda: (images, labels, test_images, test_labels))
    monkeypatch.setattr(peers.hw, "split_held_out", lambda labels: torch.arange(60).split([40, 20]))
    monkeypatch.setattr(sys, "argv", ["peers.py", "--epochs", "2", "--only", network])
    peers.main()
    rows = list(csv.DictReader((tmp_path / "benchmarks" / "peers.csv").open()))
    optimizers = peers.NETWORKS[network][1]
    assert [(r["optimizer"], r["epoch"]) for r in rows] == [(o, e) for o in optimizers for e in "12"]
    for optimizer, row in zip(optimizers, rows[1::2]):
        file = tmp_path / "checkpoints" / "ladder" / f"peer-{network.replace('/', '-')}-{optimizer}.pt"
        saved = torch.load(file)
        model = shift.load(peers.hw, saved)
        assert not model.training
        assert all(torch.equal(value, saved["weights"][key]) for key, value in model.state_dict().items())
        predictions = peers.hw.predict(model, images[40:])
        assert peers.hw.accuracy(predictions, labels[40:]) == pytest.approx(float(row["held_out"]), abs=0.01)
        assert sum(p.numel() for p in model.parameters()) == int(row["parameters"])

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--optimizers", optimizers[1]])
    peers.main()  # adds its rows to those that are there
    rows = list(csv.DictReader((tmp_path / "benchmarks" / "peers.csv").open()))
    assert [r["optimizer"] for r in rows[4:]] == [optimizers[1]] * 2


def test_the_plot_of_peers_takes_the_run_that_ended_best(ablations):
    module = importlib.import_module("peers_plot")
    rows = [("a", 300, "x", 1, 99), ("a", 300, "x", 2, 50), ("b", 300, "x", 1, 40), ("b", 300, "x", 2, 60),
            ("c", 300, "y", 1, 55), ("c", 300, "y", 2, 58), ("d", 600, "x", 1, 70), ("d", 600, "x", 2, 80)]
    log = module.pd.DataFrame(rows, columns=["run", "budget", "network", "epoch", "held_out"]).assign(epochs=2)
    chosen = module.best_runs(log, "budget", 300)
    assert {network: run.held_out.tolist() for network, run in chosen.items()} == {"x": [40, 60], "y": [55, 58]}
    assert list(chosen) == ["x", "y"]                        # the best first
    with pytest.raises(ValueError, match=r"budget is 5; peers\.csv has no run with that"):
        module.best_runs(log, "budget", 5)
    assert list(module.best_runs(log, "epochs", 2)["x"].run) == ["d", "d"]    # whatever the budget


def test_time_to_accuracy_tells_the_median_of_the_last_epochs(ablations, monkeypatch, tmp_path, sample, capsys):
    module = importlib.import_module("time_to_accuracy")

    def train(make, optimizer, h, seed, train_set, held_out_set, seconds):
        assert sum(p.numel() for p in make().parameters()) < 250_000
        assert (len(train_set[0]), len(held_out_set[0])) == (40, 20)
        yield h.epochs, 1, 9.0, 99.0, None
        yield h.epochs, 2, 10.0 + seed**2, 79.0 + seed, None

    images, labels, *test_set = (torch.from_numpy(array) for array in sample)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "LOG", tmp_path / "log.csv")
    monkeypatch.setattr(module.hw, "load_cifar10", lambda: (images, labels, *test_set))
    monkeypatch.setattr(module.hw, "split_held_out", lambda labels: torch.arange(60).split([40, 20]))
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", "--targets", "57", "80"])
    module.main()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [(r["target"], r["seed"], r["seconds"], r["held_out"]) for r in rows] == [
        (target, str(seed), f"{10.0 + seed**2}", f"{79.0 + seed}") for target in ("57", "80") for seed in range(3)]
    said = [line for line in capsys.readouterr().out.splitlines() if "median" in line]
    assert said == ["57 %: median 11 s; reached by 3 of 3 runs", "80 %: median 11 s; reached by 2 of 3 runs"]
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", "--network", "coarse", "--targets", "90"])
    with pytest.raises(SystemExit):
        module.main()
    assert "coarse has no plan for 90 %" in capsys.readouterr().err


@pytest.fixture
def ladder(ablations, monkeypatch, tmp_path, sample):
    """ladder.main on the sample, 40 images to train on and 20 held out: its arguments -> the row that it adds."""
    module = importlib.import_module("ladder")
    images, labels, *test_set = (torch.from_numpy(array) for array in sample)
    hw = module.load_definitions()
    monkeypatch.setattr(module, "load_definitions", lambda **settings: hw)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(hw, "load_dataset", lambda: ([images, labels, *test_set], hw.CIFAR10_CLASSES))
    monkeypatch.setattr(hw, "split_held_out", lambda labels: torch.arange(60).split([40, 20]))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ladder.py", *map(str, arguments)])
        module.main()
        return list(csv.DictReader((tmp_path / "runs.csv").open()))[-1]

    run.hw, run.held_out = hw, (images[40:], labels[40:])
    return run


def test_the_ladder_trains_on_from_a_file_less_what_arguments_take_away(ladder, tmp_path):
    hw, file = ladder.hw, tmp_path / "start.pt"
    torch.manual_seed(0)
    start = hw.myViT(
        dims=(6, 8), depths=(1, 1), heads=(0, 2), dim_head=3, mlp_dims=(9, 10), norms=("batch", "layer")).eval()
    torch.nn.init.normal_(start.stages[1][1].blocks[0].attention.to_out.weight, std=9)  # so that it matters
    torch.save(dict(packed=hw.pack(start)[1]), file)
    row = ladder("--start", file, "epochs=0")
    assert float(row["held_out"]) == round(hw.accuracy(hw.predict(start, ladder.held_out[0]), ladder.held_out[1]), 2)
    assert (row["network"], row["test"], row["epochs"]) == ("ours", "", "0")

    without = ladder("--start", file, "epochs=0", "heads=(0,0)")
    start.stages[1][1].blocks[0].attention = None
    assert float(without["held_out"]) == round(
        hw.accuracy(hw.predict(start, ladder.held_out[0]), ladder.held_out[1]), 2)
    assert without["held_out"] != row["held_out"]
    assert json.loads(without["settings"]) == {"epochs": 0, "heads": [0, 0], "start": "start.pt"}

    ladder("--start", file, "epochs=1", "batch_size=20", "--test")
    other = tmp_path / "other.pt"
    torch.save(dict(packed=hw.pack(hw.myViT(**start.arguments))[1]), other)
    ladder("--start", other, "epochs=1", "batch_size=20")
    assert len(list((tmp_path / "checkpoints" / "ladder").glob("*.pt"))) == 4           # each training has its own name
    with pytest.raises(RuntimeError, match="Missing key"):
        ladder("--start", file, "epochs=0", "depths=(1,2)")


def test_the_ladder_trains_on_all_images_and_scores_none_of_them(ladder):
    small = ["dims=(6,8)", "depths=(1,1)", "heads=(0,2)", "dim_head=3", "mlp_dims=(9,10)", "norms=('batch','layer')"]
    row = ladder("--all", "epochs=1", "batch_size=20", *small)
    assert (row["images"], row["held_out"], row["test"]) == ("60", "", "")
    row = ladder("epochs=1", "batch_size=20", *small)
    assert row["images"] == "40" and row["held_out"]
    with pytest.raises(SystemExit):
        ladder("--all", "--images", 20, "epochs=1")
