"""The log has one schema and backs README.md; peers have the published size; each ablation lacks its part alone."""

import csv
import importlib
import re
import sys
from collections import defaultdict
from statistics import mean

import nbformat
import pytest
import tiny
import torch
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bench = importlib.import_module


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def log(monkeypatch, tmp_path):
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
def test_every_log_has_the_one_schema(path):
    for row in rows(path):
        assert list(row) == bench("harness").COLUMNS and None not in row.values()
        assert row["question"] and row["network"] and row["measure"] and row["unit"]
        assert abs(float(row["value"])) < 1e8 and float(row["seed"] or 0) >= 0 and float(row["minutes"] or 0) >= 0


def test_figures_of_the_texts_occur_in_the_log():
    text, known, groups = (BENCHMARKS / "README.md").read_text("utf-8"), set(), defaultdict(list)
    logged = [row for path in BENCHMARKS.glob("*.csv") for row in rows(path)]
    for row in logged:
        known |= set(map(float, re.findall(r"\d+\.\d+", row["differs"])))
        kind, (_, _, adapted) = row["differs"].split(":")[0], row["differs"].partition("; statistics")
        for differs in (row["differs"], kind + adapted):                     # README has means over seeds and changes
            key = *(row[column] for column in ("question", "network", "measure", "epochs")), differs
            groups[key].append(float(row["value"]))
    known = {round(value, 2) for value in [*known, *map(mean, groups.values()), *(float(r["value"]) for r in logged)]}
    figure = re.compile(r"(?<![\d.−+])\d\d\.\d\d?(?!\d|\.\d)")
    assert [n for n in figure.findall(text) if len(n) == 5 and float(n) not in known] == []
    of_templates = (ROOT / "course_template" / "README.md").read_text("utf-8")
    told = {*figure.findall(text + of_templates)}
    cells = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4).cells
    prose = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose += (ROOT / "README.md").read_text("utf-8")
    assert [n for n in figure.findall(prose) if n not in told] == []


def test_peers_have_their_published_size_and_train_all_of_it():
    for name, network in bench("networks").NETWORKS.items():
        model = network.make()
        number = bench("harness").parameters(model)
        assert network.published in (f"{number:,}", f"{number / 1e6:.2f} M"), name
        model(torch.rand(2, 3, 32, 32)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters()), name


def test_each_ablated_network_lacks_its_part_alone():
    models = {part: make() for part, (make, *_) in bench("ablations").parts().items()}
    kinds = {part: {type(module).__name__ for module in model.modules()} for part, model in models.items()}
    lost = {part: kinds["as it is"] - found for part, found in kinds.items()}
    assert lost["without attention"] == lost["without attention, a wider FFN instead"] == {"myMultiHeadAttention"}
    assert lost["without locality"] == {"myLocality"}
    assert lost["without stem"] == {"BatchNorm2d", "ReLU"}   # convolutions are in locality, too
    assert len(models["without first stage"].stages) == len(models["as it is"].stages) - 1
    assert all(model(torch.rand(2, 3, side, side)).shape == (2, 10) for model in models.values() for side in (24, 32))


def test_trainings_are_logged_epoch_by_epoch_and_left_for_shift(log, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("peers"), "WEIGHTS", tmp_path / "weights")
    found = log("peers", "--epochs", 2, "--only", "CCT-2/3x2")
    ends = [(r["differs"], r["epochs"], r["measure"]) for r in found if r["unit"] == "%"]
    assert ends == [(f"{o}; of 2 epochs", e, m) for o in ("AdamW 0.001", "Muon 0.02 + AdamW 0.002")
                    for e, m in (("1", "validation accuracy under way"), ("2", "validation accuracy"))]
    limited = log("peers", "--minutes", 1e-6, "--only", "CCT-2/3x2", "--optimizers", "AdamW 0.001")[len(found):]
    assert [(r["epochs"], r["images"]) for r in limited if r["unit"] == "%"] == [("1", "1")]
    shift = bench("shift")
    monkeypatch.setattr(shift, "frost", lambda *a: None)     # its photographs are in a package that is not installed
    monkeypatch.setattr(shift, "CORRUPTIONS", ["fog"])
    file = tmp_path / "weights" / "peer-CCT-2-3x2-Muon-0.02-+-AdamW-0.002.pt"
    changed = log("shift", "--validation", "--images", 20, "--adapt", file)
    assert len(changed) == 2 * (1 + 5 + len(shift.EVERYDAY)) + 4  # of the clean ones, also with few and with one class
    assert {r["measure"] for r in changed} == {"validation accuracy"}
    assert changed[0]["differs"] == "clean; 20 images" and changed[0]["value"] == found[-1]["value"]


def test_ablations_and_times_are_logged_for_each_seed(log, capsys):
    found = log("ablations", "--only", "without cutout", "--seeds", 0, 1, "--epochs", 1)
    assert [(r["seed"], r["measure"]) for r in found if r["unit"] == "%"] == [(s, "validation accuracy") for s in "01"]
    assert log("time_to_accuracy", "--only", 57, "--seeds", 0)[-1]["differs"].startswith("target 57 %; sides=(24,)")
    assert "57 %: median" in capsys.readouterr().out


def test_the_ladder_trains_the_changed_recipe(log, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("ladder"), "WEIGHTS", tmp_path / "weights")
    small = ["epochs=1", "batch_size=20", "dims=(6,8)", "depths=(1,1)", "heads=(0,2)", "mlp_dims=(9,10)"]
    first = log("ladder", "norms=('batch','layer')", *small, "--note", "small")
    assert [r["measure"][19:] for r in first] == [" under way", "", ", both views"] and first[0]["images"] == "40"
    assert "batch_size=20, dims=(6, 8)" in first[0]["differs"] and first[0]["differs"].endswith("; small")
    assert log("ladder", "norms=('batch','layer')", *small, "--note", "small") == first  # known: not logged again


def test_a_gpu_is_told_in_rows(log):
    changed = [f"{n}={v}" for n, v in (tiny.MODEL | dict(batch_size=20, sides=(16, 32))).items()]
    found = log("on_gpu", *changed)
    assert (found[0]["measure"], found[0]["value"]) == ("weights equal bit for bit", "1")
    assert [r["unit"] for r in found[1:]] == ["ms", "ms", "min"]
