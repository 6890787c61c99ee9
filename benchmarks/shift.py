"""What is left of the accuracy on images that the network was not made for?

    python benchmarks/shift.py [--validation] [--images N] [FILE.pt ...]

Answer: README.md, "Changed images"; rows in shift.csv. About an hour for a network and 1,000 images on two cores. The
15 corruptions of CIFAR-10-C in five severities, made anew (corruptions.py), and everyday changes, of the test images
or, to make choices on, of the validation images. FILE.pt is a submission, or what peers.py left of another network.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from corruptions import CORRUPTIONS, corrupt, frost, jpeg
from harness import ROOT, hw, load_images, log
from networks import NETWORKS
from PIL import Image, ImageEnhance

R = Image.Resampling


def widened(p):
    return Image.fromarray(np.pad(np.asarray(p), ((16, 16), (16, 16), (0, 0)), mode="reflect"))


def resampled(side, there, back):
    return lambda p: p.resize((side, side), there).resize((32, 32), back)


def scaled(factor):
    return lambda p: widened(p).resize((32, 32), R.BICUBIC, (32 - 16 / factor,) * 2 + (32 + 16 / factor,) * 2)


def rotated(degrees):
    return lambda p: widened(p).rotate(degrees, R.BICUBIC).crop((16, 16, 48, 48))


EVERYDAY = {
    **{f"JPEG quality {q}": lambda p, q=q: jpeg(p, q) for q in (90, 75, 50, 30, 10)},
    **{f"brightness x {f}": lambda p, f=f: ImageEnhance.Brightness(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"contrast x {f}": lambda p, f=f: ImageEnhance.Contrast(p).enhance(f) for f in (0.4, 0.7, 1.3, 1.6)},
    **{f"rotated by {d} degrees": rotated(d) for d in (-15, -5, 5, 15)},
    **{f"scaled by {f}": scaled(f) for f in (0.8, 0.9, 1.1, 1.25)},
    "from 24 pixels, bilinear": resampled(24, R.BOX, R.BILINEAR),
    "from 24 pixels, Lanczos": resampled(24, R.LANCZOS, R.LANCZOS),
    "from 64 pixels, box": resampled(64, R.BICUBIC, R.BOX),
    "from 64 pixels, Lanczos": resampled(64, R.BILINEAR, R.LANCZOS),
}


def conditions(images):
    """Yield (kind, name with severity, changed images)."""
    yield "clean", "clean", images
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            yield "CIFAR-10-C", f"CIFAR-10-C: {name} {severity}", corrupt(images, name, severity)
    for name, change in EVERYDAY.items():
        changed = [np.asarray(change(Image.fromarray(image)).convert("RGB")) for image in images.numpy()]
        yield "everyday", f"everyday: {name}", torch.from_numpy(np.stack(changed))


def load(path):
    """(name, model) of a file."""
    content = torch.load(path)
    if not isinstance(content, dict):
        return f"ours, {path.stem}{', both views' * content.both_views}", content
    model = NETWORKS[content["network"]].make()
    model.load_state_dict(content["weights"])
    return f"{content['network']}, {path.stem}", model.eval()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "StudentID_submission.pt"])
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--images", type=int, default=1000)
    a = parser.parse_args(argv)
    frost(torch.zeros(1, 3, 32, 32), 0, np.random.default_rng(0))  # fails at once without its photographs
    _, validation_set, test_set, _ = load_images()
    images, labels = validation_set if a.validation else test_set
    number = min(a.images, len(images))
    some = torch.arange(number) * len(images) // number
    models, scores = dict(map(load, a.files)), {}
    for kind, name, changed in conditions(images[some]):
        for network, model in models.items():
            right = hw.accuracy(hw.predict(model, changed), labels[some])
            scores.setdefault((network, kind), []).append(right)
            log("shift", question="shift", network=network, differs=f"{name}; {number} images",
                measure=f"{'validation' if a.validation else 'test'} accuracy", value=round(right, 2), unit="%")
    for (network, kind), found in scores.items():
        print(f"{network}, {kind}: {sum(found) / len(found):.2f} % on average")


if __name__ == "__main__":
    main()
