"""What is each part of the network and of its training worth, left out from the start?

    python benchmarks/ablations.py [--only NAME ...] [--seeds 0 1] [--epochs 3] [--ema 0.999] [--images N]

Answer: README.md, "What the parts are worth"; rows in ablations.csv. About four minutes a part and seed on two cores of
an AMD EPYC of the fourth generation. Two thirds of the epochs show images of 24x24 pixels; no CutMix, no corruption.
Nothing is tuned anew for what is left, so a difference may be more than what the part is worth.
"""

from harness import SHORT, arguments, chosen, hw, load_images, log, parameters, train
from torch import nn


class Nothing(nn.Module):
    def forward(self, x):
        return 0


def vit(**changed):
    return lambda: hw.myViT(**dict(both_views=False) | changed)


def without_locality():
    model = vit()()
    for _, transformer in model.stages:
        for block in transformer.blocks:
            block.locality = Nothing()
    return model


def without_stem():
    model = vit(stem_dim=3)()
    model.stem = nn.Identity()
    return model


def with_stem_of_one_pixel():
    model = vit()()
    model.stem[0] = nn.Conv2d(3, model.stem[0].out_channels, kernel_size=1, bias=False)
    return model


def parts() -> dict:
    """What can be left out: {name: (how to make the rest, its optimizers, changed hyperparameters)}."""
    model = vit()()
    a, block = model.arguments, model.stages[-1][1].blocks[0]
    none = dict(heads=(0,) * len(a["heads"]))
    numbers = parameters(block.attention) + parameters(block.attention_norm)
    wider = none | dict(mlp_dims=(*a["mlp_dims"][:-1], a["mlp_dims"][-1] + round(numbers / (2 * a["dims"][-1] + 1))))
    later = {name: a[name][1:] for name in ("dims", "depths", "heads", "mlp_dims", "norms")}
    muon = "Muon 0.02 + AdamW 0.002"
    return {
        "as it is": (vit(), muon, {}),
        "without attention": (vit(**none), muon, {}),
        "without attention, a wider FFN instead": (vit(**wider), muon, {}),
        "without locality": (without_locality, muon, {}),
        "without stem": (without_stem, muon, {}),
        "without stem, one pixel at a time instead": (with_stem_of_one_pixel, muon, {}),
        "without first stage": (vit(patch_size=2 * a["patch_size"], **later), muon, {}),
        "without batch normalisation, layer normalisation instead": (vit(norms=("layer",) * len(a["norms"])), muon, {}),
        "without Muon, AdamW instead": (vit(), "AdamW 0.001", {}),
        "without running average": (vit(), muon, dict(ema=0.0)),
        "without cutout": (vit(), muon, dict(cutout=0)),
    }


def main(argv=None) -> None:
    parser = arguments(__doc__, seeds=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ema", type=float, default=hw.Hyperparameters.ema, help="of the running average")
    a = parser.parse_args(argv)
    found = parts()
    names = chosen(parser, a.only, found)
    train_set, validation_set, *_ = load_images(a.images)
    for part in names:
        log("ablations", question="ablations", network="ours", differs=part, measure="parameters",
            value=parameters(found[part][0]()), unit="parameters")
    for seed in a.seeds:
        for part in names:
            make, optimizer, changed = found[part]
            h = hw.Hyperparameters(**dict(epochs=a.epochs, sides=(24, 24, 32), ema=a.ema) | SHORT | changed)
            train("ablations", "ablations", "ours", f"{part}; {optimizer}, ema={h.ema}", make, optimizer, h, seed,
                  train_set, validation_set)


if __name__ == "__main__":
    main()
