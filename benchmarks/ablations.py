"""What each part of the network and of its training is worth: held-out accuracy without it, at a short budget.

    python benchmarks/ablations.py [--network ours|coarse] [--only NAME ...] [--seeds 0 1] [--epochs 3] [--ema 0.999]

The network is the notebook's or the coarse one of peers.py. Each part is left out alone; pictures are shrunk to 24 x 24
pixels for two thirds of the epochs, and none is pasted into another. Nothing is tuned anew for what is left, so a
difference may be more than what the part is worth. Appends a row a run to ablations.csv.
"""

import argparse
from pathlib import Path

from peers import COARSE, appended, hw, train
from torch import nn

LOG = Path(__file__).with_suffix(".csv")
COLUMNS = ["network", "without", "parameters", "optimizer", "ema", "seed", "epochs", "seconds", "held_out"]


class Nothing(nn.Module):
    def forward(self, x):
        return 0


def without_locality(network):
    model = hw.myViT(**network)
    for _, transformer in model.stages:
        for block in transformer.blocks:
            block.locality = Nothing()
    return model


def without_stem(network):
    model = hw.myViT(**network | dict(stem_dim=3))
    model.stem = nn.Identity()
    return model


def with_stem_of_one_pixel(network):
    model = hw.myViT(**network)
    model.stem[0] = nn.Conv2d(3, model.stem[0].out_channels, kernel_size=1, bias=False)
    return model


def parts(network: dict) -> dict:
    """What can be left out of myViT(**network): {name: (how to make the rest, its optimizers, changed settings)}."""
    model = hw.myViT(**network)
    a, block = model.arguments, model.stages[-1][1].blocks[0]
    none = dict(heads=(0,) * len(a["heads"]))
    numbers = sum(p.numel() for part in (block.attention, block.attention_norm) for p in part.parameters())
    wider = none | dict(mlp_dims=(*a["mlp_dims"][:-1], a["mlp_dims"][-1] + round(numbers / (2 * a["dims"][-1] + 1))))
    other = dict(merging="patch" if a["merging"] == "mean" else "mean")

    def vit(**changed):
        return lambda: hw.myViT(**network | changed)

    found = {
        "nothing": (vit(), "Muon", {}),
        "attention": (vit(**none), "Muon", {}),
        "attention, a wider FFN instead": (vit(**wider), "Muon", {}),
        "locality": (lambda: without_locality(network), "Muon", {}),
        "stem": (lambda: without_stem(network), "Muon", {}),
        "stem, one pixel at a time instead": (lambda: with_stem_of_one_pixel(network), "Muon", {}),
        "merging as it is, the other kind instead": (vit(**other), "Muon", {}),
        "Muon, AdamW instead": (vit(), "AdamW", {}),
        "running average": (vit(), "Muon", dict(ema=0.0)),
        "hole": (vit(), "Muon", dict(hole=0)),
        "shift": (vit(), "Muon", dict(shift=0)),
        "mirror": (vit(), "Muon", dict(mirror=False)),
    }
    if "batch" in a["norms"]:
        found["batch normalisation, layer normalisation instead"] = (
            vit(norms=("layer",) * len(a["norms"])), "Muon", {})
    if len(a["dims"]) > 2:
        later = {name: a[name][1:] for name in ("dims", "depths", "heads", "mlp_dims", "norms")}
        found["first stage"] = (vit(patch_size=2 * a["patch_size"], **later), "Muon", {})
    return found


NETWORKS = {"ours": {}, "coarse": COARSE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="ours")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ema", type=float, default=hw.Hyperparameters.ema, help="of the running average")
    a = parser.parse_args()
    found = parts(NETWORKS[a.network])
    if unknown := set(a.only or ()) - set(found):
        parser.error(f"{a.network} has no part {', '.join(sorted(unknown))}; it has {', '.join(found)}")
    images, labels, _, _ = hw.load_cifar10()
    train_set, held_out_set = ((images[i], labels[i]) for i in hw.split_held_out(labels))
    hw.keep_freed_memory()
    with appended(LOG, COLUMNS) as rows:
        for seed in a.seeds:
            for part in a.only or found:
                make, optimizer, changed = found[part]
                h = hw.Hyperparameters(**dict(epochs=a.epochs, sides=(24, 24, 32), pasted=0.0, ema=a.ema) | changed)
                *_, (_, _, seconds, held_out, _) = train(make, optimizer, h, seed, train_set, held_out_set, None)
                rows.writerow(dict(
                    network=a.network, without=part, parameters=sum(p.numel() for p in make().parameters()),
                    optimizer=optimizer, ema=h.ema, seed=seed, epochs=a.epochs, seconds=round(seconds),
                    held_out=round(held_out, 2)))
                print(f"without {part}, seed {seed}: {held_out:.2f} %, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
