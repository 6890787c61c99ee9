"""Draw what peers.py logged, held-out accuracy against epochs and against seconds: benchmarks/peers.png.

    python benchmarks/peers_plot.py [--epochs 8] [--budget 300]

On the left the runs of that many epochs, on the right those with that budget of seconds; the best of each network. A
star ends a run: only there have the rates fallen to zero. The dots before it are of a training under way, scored with
the running average of its weights.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

LOG = Path(__file__).with_name("peers.csv")
COLOURS = {"ours": "#D55E00", "ResNet-20": "#0072B2", "CCT-2/3x2": "#009E73", "template-ViT": "#E69F00",
           "coarse": "#CC79A7"}
NAMES = {"ours": "this notebook's", "template-ViT": "the course template's ViT"}


def best_runs(log: pd.DataFrame, column: str, value: float) -> dict[str, pd.DataFrame]:
    """Of the runs with this value in this column, the one that ended best for each network, the best first.

    Raises ValueError if no run has it.
    """
    log = log[log[column] == value]
    if log.empty:
        raise ValueError(f"{column} is {value}; peers.csv has no run with that")
    ends = log[log.epoch == log.epochs].sort_values("held_out").groupby("network").tail(1)
    return {end.network: log[log.run == end.run] for end in ends[::-1].itertuples()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--budget", type=float, default=300)
    a = parser.parse_args()
    log = pd.read_csv(LOG)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, dpi=100)
    for axis, x, column, value in ((axes[0], "epoch", "epochs", a.epochs), (axes[1], "seconds", "budget", a.budget)):
        for network, run in best_runs(log, column, value).items():
            label = f"{NAMES.get(network, network)}, {run.optimizer.iloc[0]}"
            axis.plot(run[x], run.held_out, ".-", color=COLOURS[network], label=label)
            axis.plot(run[x].iloc[-1], run.held_out.iloc[-1], "*", ms=13, color=COLOURS[network])
        axis.set(xlabel=x)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set(ylabel="held-out accuracy, %", title=f"{a.epochs} epochs each")
    axes[1].set(title=f"about {a.budget:.0f} seconds each")
    figure.tight_layout()
    figure.savefig(LOG.with_suffix(".png"))


if __name__ == "__main__":
    main()
