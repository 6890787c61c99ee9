"""One training loop and one log for all benchmarks: no question of its own.

`hw` holds the notebook's definitions, `train` trains any network by its `train_epoch`, `log` adds a row to a CSV here.
A row's columns, and what each question found: README.md.
"""

import argparse
import copy
import csv
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions  # noqa: E402

hw = load_definitions(DATA_DIR=str(ROOT / "data"))
LOGS = ROOT / "benchmarks"
WEIGHTS = ROOT / "checkpoints" / "ladder"  # ignored by git
VALIDATION = 5000
COLUMNS = ["question", "network", "differs", "seed", "images", "epochs", "minutes", "processor", "torch", "commit",
           "measure", "value", "unit"]
END, UNDER_WAY = "validation accuracy", "validation accuracy under way"
SHORT = dict(cutmix=0.0, corrupt=0.0, top_codes=())  # CutMix and the late phases are for long trainings


def adamw(parameters, lr, weight_decay=0.0):
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def muon(model):
    """Muon for the matrices between the first and the last layer, AdamW for the rest."""
    if isinstance(model, hw.myViT):
        return hw.make_optimizers(model, hw.Hyperparameters())
    inner = [p for name, p in model.named_parameters()
             if p.ndim == 2 and len(p) > 1 and "head" not in name and "tokenization" not in name]
    chosen = set(map(id, inner))
    return [hw.Muon(inner, 0.02), adamw([p for p in model.parameters() if id(p) not in chosen], 2e-3)]


OPTIMIZERS = {  # peak rates: of the networks' authors, scaled to batches of 256; Muon's were tuned for ours
    "SGD 0.2": lambda model: [torch.optim.SGD(model.parameters(), 0.2, 0.9, weight_decay=1e-4)],
    "AdamW 0.001": lambda model: [adamw(model.parameters(), 1e-3, 0.03)],
    "AdamW 0.02": lambda model: [adamw(model.parameters(), 2e-2, 0.01)],
    "Muon 0.02 + AdamW 0.002": muon,
}


def load_images(images=None, dataset="CIFAR10"):
    """((training images, labels), (validation images, labels), (test images, labels), the classes' names)."""
    (pictures, labels, *test), classes = hw.load_dataset(dataset)
    kept, held = hw.split_validation(labels, VALIDATION)  # the same images, whatever the seed of a training
    return *((pictures[i], labels[i]) for i in (kept[:images], held)), tuple(test), classes


@cache
def precision():
    """The number type in which the notebook would train its own network here; peers take the same."""
    images, labels = torch.zeros(64, 32, 32, 3, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)
    return hw.fastest_precision(hw.myViT().to(hw.DEVICE), images.to(hw.DEVICE), labels.to(hw.DEVICE),
                                hw.Hyperparameters())


def prepared(optimizers):
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group.setdefault("initial_lr", group["lr"])
    return optimizers


def epochs_in(minutes, model, optimizer, h, seed, train_set, dtype) -> float:
    """How many epochs of all images fit into so many minutes, by the time of eight batches; may be below one."""
    some = [t[:8 * h.batch_size] for t in train_set]
    for _ in range(2):  # the first one warms up
        probe, start = copy.deepcopy(model), time.perf_counter()
        hw.train_epoch(probe, copy.deepcopy(probe), prepared(OPTIMIZERS[optimizer](probe)), *some, 1,
                       replace(h, epochs=1), seed, dtype)
        seconds = (time.perf_counter() - start) * len(train_set[0]) / len(some[0])
    return 60 * minutes / seconds


def train(file, question, network, differs, make, optimizer, h, seed, train_set, validation_set, minutes=None):
    """Train for h.epochs, or as many as fit into `minutes`, with a row for each.

    Returns (validation accuracy, minutes, running average of the model) at the end. Scoring is not counted.
    """
    torch.manual_seed(seed)
    model, dtype = make().to(hw.DEVICE, memory_format=torch.channels_last), precision()
    train_set = [t.to(hw.DEVICE) for t in train_set]
    if minutes:
        fitting = epochs_in(minutes, model, optimizer, h, seed, train_set, dtype)
        h = replace(h, epochs=max(1, round(fitting)))
        train_set = [t[:math.ceil(min(1, fitting) * len(t))] for t in train_set]  # below one: as many images as fit
    averaged, optimizers, spent = copy.deepcopy(model).eval(), prepared(OPTIMIZERS[optimizer](model)), 0.0
    for epoch in range(1, h.epochs + 1):
        start = time.perf_counter()
        hw.train_epoch(model, averaged, optimizers, *train_set, epoch, h, seed, dtype)
        spent += (time.perf_counter() - start) / 60
        right = hw.accuracy(hw.predict(averaged, validation_set[0]), validation_set[1])
        log(file, question=question, network=network, differs=f"{differs}; of {h.epochs} epochs", seed=seed,
            images=len(train_set[0]), epochs=epoch, minutes=round(spent, 4), value=round(right, 2), unit="%",
            measure=END if epoch == h.epochs else UNDER_WAY, processor=f"{processor()}, {str(dtype)[6:]}")
        print(f"{network}, {differs}, seed {seed}: {epoch} of {h.epochs}, {spent:.2f} min, {right:.2f} %", flush=True)
    return right, spent, averaged


def log(file, **row):
    """Add a row to benchmarks/<file>.csv; processor, torch and commit are those of now where none are given."""
    row = dict(processor=processor(), torch=torch.__version__.split("+")[0], commit=commit()) | row
    if unknown := set(row) - set(COLUMNS):
        raise ValueError(f"no such column: {', '.join(sorted(unknown))}")
    path = LOGS / f"{file}.csv"
    new = not path.exists()
    with path.open("a", newline="") as f:
        rows = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerow(row)


def processor():
    if hw.DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores {names[0] if names else 'of this machine'}"


def commit():
    """The code's commit, with a + where code differs from it."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.ipynb"], capture_output=True).returncode
    return found + "+" * (changed == 1)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def arguments(doc, seeds=(0,)):
    """A parser with what all trainings here take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=seeds)
    parser.add_argument("--images", type=int, help="how many to train on; default: all but 5,000 for validation")
    parser.add_argument("--only", nargs="*", metavar="NAME")
    return parser


def chosen(parser, only, names):
    """The names that --only gives, or all; an error that lists them for another."""
    if unknown := set(only or ()) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return only or list(names)
