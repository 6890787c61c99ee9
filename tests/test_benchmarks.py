"""The log has one schema and backs README.md; peers have the published size; each ablation lacks its part alone."""

import csv
import importlib
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
FIGURES = {  # what all texts quote: (question, differs, measure) of the row in runs.csv that it comes from
    "94.58": ("shipped", "6 bits, one view", "test accuracy"),
    "95.03": ("shipped", "6 bits, both views", "test accuracy"),
    "244,010": ("shipped", "", "parameters"),
    "192,041": ("shipped", "6 bits", "bytes of the .pt"),
}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bench():
    """Imports a module of benchmarks/."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def log(bench, monkeypatch, tmp_path):
    """The rows that a benchmark adds to a .csv when its trainings have 40 images, 20 more for validation."""
    harness = bench("harness")
    images, labels = torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8), torch.arange(60) % 10
    loaded = [images, labels, images[:10], labels[:10]], "0123456789"
    monkeypatch.setattr(harness.hw, "load_dataset", lambda *a, **k: loaded)
    monkeypatch.setattr(harness, "VALIDATION", 20)
    monkeypatch.setattr(harness, "LOGS", tmp_path)
    monkeypatch.setattr(harness, "precision", lambda: torch.float32)

    def added(module, *arguments):
        bench(module).main(list(map(str, arguments)))
        return rows(tmp_path / f"{'runs' if module == 'ladder' else module}.csv")

    return added


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.csv")), ids=lambda path: path.stem)
def test_every_log_has_the_one_schema(bench, path):
    for row in rows(path):
        assert list(row) == bench("harness").COLUMNS and None not in row.values()
        assert row["question"] and row["network"] and row["measure"] and row["unit"]
        assert abs(float(row["value"])) < 1e8 and float(row["seed"] or 0) >= 0 and float(row["minutes"] or 0) >= 0


def test_figures_of_the_texts_come_from_the_log():
    text, known, groups = (BENCHMARKS / "README.md").read_text(), set(), defaultdict(list)
    logged = [row for path in BENCHMARKS.glob("*.csv") for row in rows(path)]
    for row in logged:
        known |= set(map(float, re.findall(r"\d+\.\d+", row["differs"])))
        for differs in (row["differs"], row["differs"].split(":")[0]):       # README has means over seeds and changes
            key = *(row[column] for column in ("question", "network", "measure", "epochs")), differs
            groups[key].append(float(row["value"]))
    known = {round(value, 2) for value in [*known, *map(mean, groups.values()), *(float(r["value"]) for r in logged)]}
    figure = re.compile(r"(?<![\d.−+])\d\d\.\d\d?(?!\d|\.\d)")
    assert [n for n in figure.findall(text) if len(n) == 5 and float(n) not in known] == []
    of_templates = (ROOT / "course_template" / "README.md").read_text()
    told = {f"{float(n):.{digits}f}" for n in figure.findall(text + of_templates) for digits in (1, 2)}
    for name, where in FIGURES.items():
        (value,) = (r["value"] for r in logged if (r["question"], r["differs"], r["measure"]) == where)
        assert float(value) == float(name.replace(",", "")) and name in text
    cells = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4).cells
    prose = "".join(cell.source for cell in cells if cell.cell_type == "markdown") + (ROOT / "README.md").read_text()
    assert [n for n in figure.findall(prose) if n not in told] == []


def test_peers_have_their_published_size_and_learn(bench):
    for name, network in bench("networks").NETWORKS.items():
        model = network.make()
        number = bench("harness").parameters(model)
        assert network.published in (f"{number:,}", f"{number / 1e6:.2f} M"), name
        model(torch.rand(2, 3, 32, 32)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters()), name
        for optimizers in map(bench("harness").OPTIMIZERS.get, network.optimizers):
            groups = [group for optimizer in optimizers(model) for group in optimizer.param_groups]
            assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters())), name


def test_each_ablated_network_lacks_its_part_alone(bench):
    parts, size = bench("ablations").parts(), bench("harness").parameters
    models = {part: make() for part, (make, *_) in parts.items()}
    whole = models["as it is"]
    kinds = {part: {type(module).__name__ for module in model.modules()} for part, model in models.items()}
    lost = {part: kinds["as it is"] - found for part, found in kinds.items()}
    assert lost["without attention"] == lost["without attention, a wider FFN instead"] == {"myMultiHeadAttention"}
    assert lost["without locality"] == {"myLocality"}
    assert lost["without stem"] == {"BatchNorm2d", "ReLU"}   # convolutions are in locality, too
    pixel = "without stem, one pixel at a time instead"
    assert not lost[pixel] and models[pixel].stem[0].kernel_size == (1, 1) != whole.stem[0].kernel_size
    assert abs(size(models["without attention, a wider FFN instead"]) - size(whole)) < 300
    assert len(models["without first stage"].stages) == len(whole.stages) - 1
    assert all(model(torch.rand(2, 3, side, side)).shape == (2, 10) for model in models.values() for side in (24, 32))
    logged = {(r["differs"], r["value"]) for r in rows(BENCHMARKS / "ablations.csv")
              if (r["network"], r["measure"]) == ("ours", "parameters") and r["differs"] in models}
    assert logged <= {(part, str(size(model))) for part, model in models.items()}


def test_ablated_trainings_differ_from_the_recipe_in_one_thing(bench):
    parts, recipe = bench("ablations").parts(), vars(bench("harness").hw.Hyperparameters())
    whole = parts["as it is"][0]()
    for part, (make, optimizer, changed) in parts.items():
        assert all(recipe[name] != value for name, value in changed.items())
        others = (str(make()) != str(whole)) + (not optimizer.startswith("Muon")) + len(changed)
        assert others == (part != "as it is"), part


def test_trainings_are_logged_epoch_by_epoch_and_left_for_shift(bench, log, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("peers"), "WEIGHTS", tmp_path / "weights")
    found = log("peers", "--epochs", 2, "--only", "CCT-2/3x2")
    ends = [(r["differs"], r["epochs"], r["measure"]) for r in found if r["unit"] == "%"]
    assert ends == [(f"{o}; of 2 epochs", e, m) for o in ("AdamW 0.001", "Muon 0.02 + AdamW 0.002")
                    for e, m in (("1", "validation accuracy under way"), ("2", "validation accuracy"))]
    *_, row = log("peers", "--minutes", 0.0001, "--only", "template's ViT")
    assert row["differs"] == "Muon 0.02 + AdamW 0.002; budget 0.0001 minutes; of 1 epochs"
    shift = bench("shift")
    monkeypatch.setattr(shift, "frost", lambda *a: None)     # its photographs are in a package that is not installed
    monkeypatch.setattr(shift, "CORRUPTIONS", ["fog"])
    file = tmp_path / "weights" / "peer-CCT-2-3x2-Muon-0.02-+-AdamW-0.002.pt"
    changed = log("shift", "--validation", "--images", 20, file)
    assert len(changed) == 1 + 5 + len(shift.EVERYDAY) and {r["measure"] for r in changed} == {"validation accuracy"}
    assert changed[0]["differs"] == "clean; 20 images" and changed[0]["value"] == found[-1]["value"]


def test_ablations_and_times_are_logged_for_each_seed(log, capsys):
    found = log("ablations", "--only", "without cutout", "--seeds", 0, 1, "--epochs", 1)
    assert [(r["seed"], r["measure"]) for r in found if r["unit"] == "%"] == [(s, "validation accuracy") for s in "01"]
    assert log("time_to_accuracy", "--only", 57, "--seeds", 0)[-1]["differs"].startswith("target 57 %; sides=(24,)")
    assert "57 %: median" in capsys.readouterr().out


def test_the_ladder_trains_the_changed_recipe(bench, log, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("ladder"), "WEIGHTS", tmp_path / "weights")
    small = ["epochs=1", "batch_size=20", "dims=(6,8)", "depths=(1,1)", "heads=(0,2)", "mlp_dims=(9,10)"]
    first = log("ladder", "norms=('batch','layer')", *small, "--note", "small")
    assert [r["measure"][19:] for r in first] == [" under way", "", ", both views"] and first[0]["images"] == "40"
    assert "batch_size=20, dims=(6, 8)" in first[0]["differs"] and first[0]["differs"].endswith("; small")
    *_, test, both, _ = log("ladder", "--all", "--test", "norms=('batch','layer')", *small)
    assert (test["images"], test["measure"], both["measure"]) == ("60", "test accuracy", "test accuracy, both views")


@pytest.mark.parametrize("same", [True, False])
def test_weights_that_differ_after_a_kill_are_told(bench, log, monkeypatch, same):
    lives = iter(["done", "writing", "mid-epoch", "done"])

    def life(folder, *a, **k):
        ended = next(lives)
        if ended == "done":
            torch.save({"w": torch.tensor(0 if same else float(folder.stat().st_ino))}, folder / "weights")
        return ended, 9.0

    monkeypatch.setattr(bench("kill_resume"), "life", life)
    *_, row = log("kill_resume", "--kills", 2)
    assert (row["value"], row["unit"], row["differs"][:16]) == (str(int(same)), "of 1 trainings", "2 kills, 1 of th")


def test_plots_take_the_run_that_ended_best(bench):
    def run(network, *values):
        return [dict(network=network, differs="", seed="0", commit="", epochs=str(i), value=str(v),
                     measure="validation accuracy" + " under way" * (i < len(values))) for i, v in enumerate(values, 1)]
    logged = run("a", 99, 50) + run("a", 40, 60) + run("b", 55, 58)[:1] + run("c", 55, 59)
    best = bench("plots").best_runs(logged, lambda end: end["epochs"] == "2")
    assert [[r["value"] for r in run] for run in best] == [["40", "60"], ["55", "59"]]
