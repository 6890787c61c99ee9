"""Train with some hyperparameters changed, score on the held-out images, and add a row to benchmarks/runs.csv.

    python benchmarks/ladder.py [--seed 0] [--images 45000] [--note TEXT] [NAME=VALUE ...]

NAME is a field of the notebook's Hyperparameters or an argument of its myViT: epochs=8 batch_size=256 heads=(0,2). The
test images are not touched. A run that was cut short is resumed by the same command.
"""

import argparse
import csv
import json
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions, setting  # noqa: E402

RUNS = ROOT / "benchmarks" / "runs.csv"
COLUMNS = ["settings", "seed", "images", "epochs", "seconds", "held_out", "test", "machine", "note"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--note", default="")
    parser.add_argument("--machine", default="2 cores AMD EPYC Zen 3, float32")
    a = parser.parse_args()

    hw = load_definitions(DATA_DIR=str(ROOT / "data"))
    names = {f.name for f in fields(hw.Hyperparameters)}
    settings = dict(a.settings)
    h = hw.Hyperparameters(**{name: value for name, value in settings.items() if name in names})
    images, labels, _, _ = hw.load_cifar10()
    kept, held = hw.split_held_out(labels)  # always the same split, whatever the seed of the training
    kept = kept[:a.images]
    hw.torch.manual_seed(a.seed)
    model = hw.myViT(**{name: value for name, value in settings.items() if name not in names})
    _, history = hw.train(model, (images[kept], labels[kept]), (images[held], labels[held]), h, seed=a.seed,
                          folder=ROOT / "checkpoints" / "ladder", retrain=False)
    new = not RUNS.exists()
    with RUNS.open("a", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerow(dict(
            settings=json.dumps(settings), seed=a.seed, images=len(kept), epochs=h.epochs,
            seconds=round(sum(e["seconds"] for e in history)), held_out=round(history[-1]["held_out"], 2), test="",
            machine=a.machine, note=a.note))


if __name__ == "__main__":
    main()
