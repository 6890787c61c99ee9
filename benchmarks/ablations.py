"""What each part of the network and of its training is worth: held-out accuracy without it, at a short budget.

    python benchmarks/ablations.py [--only NAME ...] [--seeds 0 1] [--epochs 3]

Each part is left out alone; pictures are shrunk to 24 x 24 pixels for two thirds of the epochs. Nothing is tuned anew
for what is left, so a difference may be more than what the part is worth. Appends a row a run to ablations.csv.
"""

import argparse
import csv
from pathlib import Path

from peers import hw, train
from torch import nn

LOG = Path(__file__).with_suffix(".csv")
COLUMNS = ["without", "parameters", "optimizer", "seed", "epochs", "seconds", "held_out"]


class PooledTokenization(nn.Module):
    """In place of patch merging: the mean over 2x2 tokens, then LN and a linear map."""

    def __init__(self, merging, dim):
        super().__init__()
        out = merging.to_patch_tokens[2].out_features
        self.pool, self.to_tokens = nn.AvgPool2d(2), nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out))

    def forward(self, x):
        return self.to_tokens(hw.rearrange(self.pool(x), "b d h w -> b (h w) d"))


class Nothing(nn.Module):
    def forward(self, x):
        return 0


def without_locality():
    model = hw.myViT()
    for _, transformer in model.stages:
        for block in transformer.blocks:
            block.locality = Nothing()
    return model


def without_stem():
    model = hw.myViT(stem_dim=3)
    model.stem = nn.Identity()
    return model


def without_merging():
    model = hw.myViT()
    model.stages[1][0] = PooledTokenization(model.stages[1][0], 64)
    return model


PARTS = {  # what is left out: (the network, its optimizers, changed hyperparameters)
    "nothing": (hw.myViT, "Muon", {}),
    "attention": (lambda: hw.myViT(heads=(0, 0)), "Muon", {}),
    "attention, a wider FFN instead": (lambda: hw.myViT(heads=(0, 0), mlp_dims=(128, 271)), "Muon", {}),
    "locality": (without_locality, "Muon", {}),
    "stem": (without_stem, "Muon", {}),
    "merging, pooling instead": (without_merging, "Muon", {}),
    "Muon, AdamW instead": (hw.myViT, "AdamW", {}),
    "running average": (hw.myViT, "Muon", dict(ema=0.0)),
    "hole": (hw.myViT, "Muon", dict(hole=0)),
    "shift": (hw.myViT, "Muon", dict(shift=0)),
    "mirror": (hw.myViT, "Muon", dict(mirror=False)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    a = parser.parse_args()
    images, labels, _, _ = hw.load_cifar10()
    train_set, held_out_set = ((images[i], labels[i]) for i in hw.split_held_out(labels))
    hw.keep_freed_memory()
    new = not LOG.exists()
    with LOG.open("a", newline="", buffering=1) as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        for seed in a.seeds:
            for part in a.only:
                make, optimizer, changed = PARTS[part]
                h = hw.Hyperparameters(epochs=a.epochs, sides=(24, 24, 32), **changed)
                *_, (_, _, seconds, held_out, _) = train(make, optimizer, h, seed, train_set, held_out_set, None)
                rows.writerow(dict(
                    without=part, parameters=sum(p.numel() for p in make().parameters()), optimizer=optimizer,
                    seed=seed, epochs=a.epochs, seconds=round(seconds), held_out=round(held_out, 2)))
                print(f"without {part}, seed {seed}: {held_out:.2f} %, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
