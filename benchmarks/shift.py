"""What is left of the accuracy on pictures that the network was not made for.

    python benchmarks/shift.py [--held-out] [--images N] [--note TEXT] [FILE.pt ...]

The 15 corruptions of CIFAR-10-C in five severities, made anew (benchmarks/corruptions.py), then everyday changes: JPEG,
brightness, contrast, rotation, scale, and pictures that came from 24 or 64 pixels through other filters. Made from the
test images or, to make choices on, from the held-out ones. FILE.pt is a submission, a file of checkpoints/, or what
peers.py has left there of another network. Prints a table, and adds one row a condition to benchmarks/shift.csv.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from corruptions import CORRUPTIONS, corrupt, frost, jpeg
from PIL import Image, ImageEnhance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions  # noqa: E402

RESAMPLING = Image.Resampling


def resampled(side, there, back):
    return lambda p: p.resize((side, side), there).resize((32, 32), back)


def scaled(factor):
    size = 32 / factor
    box = ((32 - size) / 2, (32 - size) / 2, (32 + size) / 2, (32 + size) / 2)

    def change(p):
        wide = Image.fromarray(np.pad(np.asarray(p), ((16, 16), (16, 16), (0, 0)), mode="reflect"))
        return wide.resize((32, 32), RESAMPLING.BICUBIC, tuple(b + 16 for b in box))
    return change


def rotated(degrees):
    def change(p):
        wide = Image.fromarray(np.pad(np.asarray(p), ((16, 16), (16, 16), (0, 0)), mode="reflect"))
        return wide.rotate(degrees, RESAMPLING.BICUBIC).crop((16, 16, 48, 48))
    return change


EVERYDAY = {
    **{f"JPEG quality {q}": lambda p, q=q: jpeg(p, q) for q in (90, 75, 50, 30, 10)},
    **{f"brightness x {f}": lambda p, f=f: ImageEnhance.Brightness(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"contrast x {f}": lambda p, f=f: ImageEnhance.Contrast(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"rotated by {d} degrees": rotated(d) for d in (-15, -5, 5, 15)},
    **{f"scaled by {f}": scaled(f) for f in (0.8, 0.9, 1.1, 1.25)},
    "from 24 pixels, bilinear": resampled(24, RESAMPLING.BOX, RESAMPLING.BILINEAR),
    "from 24 pixels, Lanczos": resampled(24, RESAMPLING.LANCZOS, RESAMPLING.LANCZOS),
    "from 64 pixels, box": resampled(64, RESAMPLING.BICUBIC, RESAMPLING.BOX),
    "from 64 pixels, Lanczos": resampled(64, RESAMPLING.BILINEAR, RESAMPLING.LANCZOS),
}


def conditions(images):
    """Yield (kind, name, severity, changed images)."""
    yield "clean", "clean", 0, images
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            yield "CIFAR-10-C", name, severity, corrupt(images, name, severity)
    for name, change in EVERYDAY.items():
        changed = [np.asarray(change(Image.fromarray(image)).convert("RGB")) for image in images.numpy()]
        yield "everyday", name, 0, torch.from_numpy(np.stack(changed))


def load(hw, file):
    """The model in a file: a module itself, weights packed by the notebook, or those of peers.py."""
    if not isinstance(file, dict):
        return file
    if "packed" in file:
        return hw.unpack(*file["packed"])
    import peers  # loads the notebook once more, so only where it is needed
    return peers.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "StudentID_submission.pt"])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--note", default="")
    a = parser.parse_args()

    frost(torch.zeros(1, 3, 32, 32), 0, np.random.default_rng(0))  # fails at once without its photographs
    hw = load_definitions(name="__main__", DATA_DIR=str(ROOT / "data"))  # the .pt asks for unpack by this name
    images, labels, test_images, test_labels = hw.load_cifar10()
    if a.held_out:
        _, held = hw.split_held_out(labels)
        test_images, test_labels = images[held], labels[held]
    number = min(a.images, len(test_images))
    chosen = torch.arange(number) * len(test_images) // number
    test_images, test_labels = test_images[chosen], test_labels[chosen]
    models = {os.path.relpath(file, ROOT): load(hw, torch.load(file)) for file in a.files}
    rows = []
    for kind, name, severity, changed in conditions(test_images):
        for file, model in models.items():
            right = hw.accuracy(hw.predict(model, changed), test_labels)
            rows.append(dict(file=file, images=f"{len(test_images)} {'held out' if a.held_out else 'test'}", kind=kind,
                             condition=name, severity=severity, accuracy=round(right, 2), note=a.note))
    table = pd.DataFrame(rows)
    log = ROOT / "benchmarks" / "shift.csv"
    table.to_csv(log, mode="a", header=not log.exists(), index=False)
    table["condition"] = pd.Categorical(table.condition, table.condition.unique())
    print(table.pivot_table(index=["kind", "condition"], columns="file", values="accuracy", observed=True).round(1))
    print(table.groupby(["kind", "file"], sort=False).accuracy.mean().round(2))


if __name__ == "__main__":
    main()
