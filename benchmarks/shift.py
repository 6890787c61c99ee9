"""What is left of the accuracy on images that the network was not made for?

    python benchmarks/shift.py [--validation] [--images N] [--adapt] [--only KIND] [FILE.pt ...]

Answer: README.md, "Changed images"; rows in shift.csv. Six minutes for a network and 2,000 images on two cores of a
Zen 4, several times that with --adapt. The 15 corruptions of CIFAR-10-C in five severities, made anew (corruptions.py),
and everyday changes, of the test images or, to make choices on, of the validation images. FILE.pt is a submission, or
what peers.py left of another network.
--adapt: in one view, also with batch norm's statistics of the changed images, of few of them and of one class alone.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from corruptions import CORRUPTIONS, EVERYDAY, corrupt, everyday, frost
from harness import ROOT, hw, load_images, log
from networks import NETWORKS


def conditions(images, only):
    """Yield (kind, name with severity, changed images)."""
    yield "clean", "clean", images
    for name in CORRUPTIONS if only != "everyday" else ():
        for severity in range(1, 6):
            yield "CIFAR-10-C", f"CIFAR-10-C: {name} {severity}", corrupt(images, name, severity)
    for name in EVERYDAY if only != "CIFAR-10-C" else ():
        yield "everyday", f"everyday: {name}", everyday(images, name)


def adapted(model, images, labels, name):
    """Yield (what the statistics are of, accuracy): of all images; for two changes also of few, of one class alone."""
    yield "all", hw.accuracy(hw.predict(hw.adapt(model, images), images), labels)
    if name in ("clean", "CIFAR-10-C: gaussian_noise 3"):
        for number in (10, 30, 100):
            yield f"{number} images", hw.accuracy(hw.predict(hw.adapt(model, images[:number]), images), labels)
        alone = [(images[labels == c], labels[labels == c]) for c in labels.unique()]
        yield "one class", mean(hw.accuracy(hw.predict(hw.adapt(model, x), x), y) for x, y in alone)


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
    parser.add_argument("--adapt", action="store_true")
    parser.add_argument("--only", choices=("CIFAR-10-C", "everyday"))
    a = parser.parse_args(argv)
    if a.only != "everyday":
        frost(torch.zeros(1, 3, 32, 32), 0, np.random.default_rng(0))  # fails at once without its photographs
    _, validation_set, test_set, _ = load_images()
    images, labels = validation_set if a.validation else test_set
    number = min(a.images, len(images))
    some = torch.arange(number) * len(images) // number
    models, scores = dict(map(load, a.files)), defaultdict(list)
    for kind, name, changed in conditions(images[some], a.only):
        for network, model in models.items():
            found = [("", hw.accuracy(hw.predict(model, changed), labels[some]))]
            for of, right in adapted(hw.single_view(model), changed, labels[some], name) if a.adapt else ():
                found.append((f"; statistics of {of}", right))
            for how, right in found:
                scores[network, kind, name.split()[1] if kind == "everyday" else "", how].append(right)
                log("shift", question="shift", network=network, differs=f"{name}; {number} images{how}",
                    measure=f"{'validation' if a.validation else 'test'} accuracy", value=round(right, 2), unit="%")
    for key, found in scores.items():
        print(f"{' '.join(filter(None, key))}: {mean(found):.2f} % on average")


if __name__ == "__main__":
    main()
