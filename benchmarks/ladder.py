"""What does a changed recipe give? The notebook's own training, with some hyperparameters or arguments changed.

    python benchmarks/ladder.py [NAME=VALUE ...] [--dataset CIFAR10] [--seed 0] [--images N | --all] [--test]
                                [--note TEXT]

Answer: rows in runs.csv; README.md tells what decided something. The whole recipe takes hours on two cores; a run that
was cut short is resumed by the same command. NAME is a field of Hyperparameters or an argument of myViT: epochs=8
cutmix=0.0 dim_head=8. The test images are not touched without --test.
"""

import argparse
from dataclasses import fields

from harness import END, UNDER_WAY, WEIGHTS, hw, load_images, log

from run import load_definitions, setting


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--dataset", default="CIFAR10")
    parser.add_argument("--seed", type=int, default=0)
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--images", type=int, help="how many to train on; default: all but 5,000 for validation")
    number.add_argument("--all", action="store_true", help="train on those 5,000, too; then there is no validation")
    parser.add_argument("--test", action="store_true", help="score the test images, too: for what is to be reported")
    parser.add_argument("--note", default="")
    a = parser.parse_args(argv)

    settings, names = dict(a.settings), {f.name for f in fields(hw.Hyperparameters)}
    of_set = load_definitions(name="homework_of_set", DATASET=a.dataset)
    h = hw.Hyperparameters(**dict(mirror=of_set.MIRRORED) | {n: v for n, v in settings.items() if n in names})
    train_set, validation_set, test_set, classes = load_images(a.images, a.dataset)
    if a.all:
        train_set, validation_set = hw.load_dataset(a.dataset)[0][:2], None
    some = train_set[0][:5000].float() / 255
    colours = {} if a.dataset == "CIFAR10" else {  # as in the notebook's cell that trains
        name: tuple(max(round(v, 4), 0.01) for v in getattr(some, name)((0, 1, 2)).tolist())
        for name in ("mean", "std")}
    hw.torch.manual_seed(a.seed)
    model = hw.myViT(len(classes), **dict(both_views=h.mirror) | colours
                     | {n: v for n, v in settings.items() if n not in names})
    known = (WEIGHTS / f"{hw.fingerprint(model, train_set, h, a.seed)}.pt").exists()  # then its rows are logged, too
    trained, history = hw.train(model, train_set, validation_set, h, seed=a.seed, folder=WEIGHTS, retrain=False)

    changed = ", ".join(f"{n}={value}" for n, value in settings.items() if n != "epochs")
    row = dict(question="recipe", network="ours", seed=a.seed, images=len(train_set[0]), unit="%",
               differs="; ".join(filter(None, [of_set.SUFFIX[1:], changed, a.note])))
    minutes = 0
    for epoch in history:
        minutes += epoch["seconds"] / 60
        row |= dict(epochs=epoch["epoch"], minutes=round(minutes, 4))
        if validation_set and not known:
            log("runs", **row, measure=UNDER_WAY, value=round(epoch["validation"], 2))
    for measure, pair in [(END, None if known else validation_set), ("test accuracy", test_set if a.test else None)]:
        for views, network in [("", hw.single_view(trained)), (", both views", trained)] if pair else []:
            right = hw.accuracy(hw.predict(network, pair[0]), pair[1])
            log("runs", **row, measure=measure + views, value=round(right, 2))
            print(f"{measure}{views} {right:.2f} %", flush=True)
    if not validation_set and not known:
        log("runs", **row | dict(unit="min"), measure="minutes of training", value=round(minutes, 4))


if __name__ == "__main__":
    main()
