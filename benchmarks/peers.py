"""How do other small networks do, trained alike, in equal epochs or in equal time?

    python benchmarks/peers.py [--epochs 8 | --minutes 15] [--only NAME ...] [--optimizers NAME ...]

Answer: README.md, "Beside its peers"; rows in peers.csv, drawn by plots.py. With --minutes 15 about three hours for the
six networks of networks.py with two optimizers each. Whole images, no CutMix, no corruption; the same schedule and
running average for all. Leaves the weights in checkpoints/ladder/peer-*.pt, where shift.py finds them.
"""

import torch
from harness import OPTIMIZERS, SHORT, WEIGHTS, arguments, chosen, hw, load_images, log, parameters, train
from networks import NETWORKS


def main(argv=None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--optimizers", nargs="*", help="of a network's two; default: both")
    a = parser.parse_args(argv)
    names, optimizers = chosen(parser, a.only, NETWORKS), chosen(parser, a.optimizers, OPTIMIZERS)
    train_set, validation_set, *_ = load_images(a.images)
    h = hw.Hyperparameters(epochs=a.epochs, sides=(32,), **SHORT)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        network = NETWORKS[name]
        log("peers", question="peers", network=name, measure="parameters", value=parameters(network.make()),
            unit="parameters")
        for optimizer in [name for name in network.optimizers if name in optimizers]:
            differs = optimizer + (f"; budget {a.minutes:g} minutes" if a.minutes else "")
            for seed in a.seeds:
                *_, model = train("peers", "peers", name, differs, network.make, optimizer, h, seed, train_set,
                                  validation_set, a.minutes)
            weights = {key: value.cpu() for key, value in model.state_dict().items()}
            file = f"peer-{name}-{optimizer}.pt".replace("/", "-").replace(" ", "-")
            torch.save(dict(network=name, weights=weights), WEIGHTS / file)


if __name__ == "__main__":
    main()
