"""Train with some hyperparameters changed, score on the held-out images, and add a row to benchmarks/runs.csv.

    python benchmarks/ladder.py [--dataset CIFAR10] [--start FILE] [--seed 0] [--images N | --all]
                                [--test] [--machine TEXT] [--note TEXT] [NAME=VALUE ...]

NAME is a field of the notebook's Hyperparameters or an argument of its myViT: epochs=8 batch_size=256 dim_head=8. With
--start the network is the one in FILE, one of checkpoints/, which is trained on, less what arguments take away:
"heads=(0,0,0)" leaves attention out; epochs=0 only scores it. The test images are not touched without --test. A run
that was cut short is resumed by the same command.
"""

import argparse
import csv
import json
import os
import platform
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions, setting  # noqa: E402

RUNS = ROOT / "benchmarks" / "runs.csv"
COLUMNS = ["dataset", "network", "settings", "seed", "images", "epochs", "seconds", "held_out", "test", "machine",
           "note"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--dataset", default="CIFAR10")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--images", type=int, help="how many to train on; default: all but the 5,000 held out")
    number.add_argument("--all", action="store_true", help="train on those 5,000, too; then none are held out")
    parser.add_argument("--test", action="store_true", help="score the test images, too: for what is to be reported")
    parser.add_argument("--note", default="")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}", help="for the log")
    a = parser.parse_args()

    hw = load_definitions(DATA_DIR=str(ROOT / "data"), DATASET=a.dataset)
    names = {f.name for f in fields(hw.Hyperparameters)}
    settings = dict(a.settings)
    h = hw.Hyperparameters(**{"mirror": hw.MIRRORED} | {n: value for n, value in settings.items() if n in names})
    (images, labels, *test_set), classes = hw.load_dataset()
    kept, held = hw.split_held_out(labels)  # always the same split, whatever the seed of the training
    train_set, held_out_set = (images[kept[:a.images]], labels[kept[:a.images]]), (images[held], labels[held])
    if a.all:
        train_set, held_out_set = (images, labels), None
    start = hw.unpack(*hw.torch.load(a.start, weights_only=True)["packed"]) if a.start else None
    base = start.arguments if start else {}
    changed = {n: value for n, value in settings.items() if n not in names}
    hw.torch.manual_seed(a.seed)
    model = hw.myViT(**dict(num_classes=len(classes)) | base | changed)
    if start:
        left = model.state_dict().keys()
        model.load_state_dict({n: value for n, value in start.state_dict().items() if n in left})
    trained, history = hw.train(model, train_set, held_out_set, h, seed=a.seed,
                                folder=ROOT / "checkpoints" / "ladder",
                                before=hw.sha256_of(model) if start else "")

    def score(images, labels):
        return round(hw.accuracy(hw.predict(trained, images), labels), 2)

    settings |= {"start": a.start.name} if a.start else {}
    new = not RUNS.exists()
    with RUNS.open("a", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerow(dict(
            dataset=a.dataset, network="ours", settings=json.dumps(settings), seed=a.seed, images=len(train_set[0]),
            epochs=h.epochs, seconds=round(sum(e["seconds"] for e in history)),
            held_out=score(*held_out_set) if held_out_set else "", test=score(*test_set) if a.test else "",
            machine=a.machine, note=a.note))


if __name__ == "__main__":
    main()
