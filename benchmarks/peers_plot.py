"""Draw what peers.py logged, held-out accuracy against epochs and against seconds: benchmarks/peers.png.

    python benchmarks/peers_plot.py [--budget 300]

Of the runs with that budget of seconds, the best of each network. A star ends a run: only there have the rates fallen
to zero. The dots before it are of a training under way, scored with the running average of its weights.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

LOG = Path(__file__).with_name("peers.csv")
NAMES = {"ours": "this notebook's", "template-ViT": "the course template's ViT"}


def best_runs(log: pd.DataFrame, budget: float) -> dict[str, pd.DataFrame]:
    """The epochs of the run that ended best, for each network. Raises ValueError if no run had this budget."""
    log = log[log.budget == budget]
    if log.empty:
        raise ValueError(f"budget is {budget}; peers.csv has no run with that")
    ends = log[log.epoch == log.epochs].sort_values("held_out").groupby("network").tail(1)
    return {end.network: log[log.run == end.run] for end in ends[::-1].itertuples()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=300)
    budget = parser.parse_args().budget
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, dpi=100)
    for colour, (network, run) in zip(("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7"),
                                      best_runs(pd.read_csv(LOG), budget).items()):
        for axis, x in zip(axes, ("epoch", "seconds")):
            label = f"{NAMES.get(network, network)}, {run.optimizer.iloc[0]}"
            axis.plot(run[x], run.held_out, ".-", color=colour, label=label)
            axis.plot(run[x].iloc[-1], run.held_out.iloc[-1], "*", ms=13, color=colour)
            axis.set(xlabel=x)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="held-out accuracy, %")
    axes[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(LOG.with_suffix(".png"))


if __name__ == "__main__":
    main()
