"""Seconds of training until 57, 80 and 90 % of the held-out images are right: the median of three seeds.

    python benchmarks/time_to_accuracy.py [--targets 57 80 90] [--seeds 0 1 2] [--machine TEXT]

Each target has a training of its own, with rates that have fallen to zero at its end: a long training
is far below what it could reach by then. For 57 % PLANS has the shortest of three that were tried that suffices, for
80 % the only one; that for 90 % has not been run. Scoring is not counted. Appends a row a run to time_to_accuracy.csv.
"""

import argparse
import os
import platform
import statistics
from pathlib import Path

from peers import NETWORKS, appended, hw, train

LOG = Path(__file__).with_suffix(".csv")
COLUMNS = ["target", "network", "epochs", "sides", "ema", "seed", "seconds", "held_out", "machine"]
PLANS = {  # target in per cent: (network, changed settings)
    57: ("coarse", dict(epochs=1, sides=(32,), ema=0.98)),
    80: ("coarse", dict(epochs=5, sides=(24, 24, 24, 24, 32), ema=0.99)),
    90: ("coarse", dict(epochs=20, sides=(24, 24, 32), ema=0.998)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", type=int, choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}", help="for the log")
    a = parser.parse_args()
    images, labels, _, _ = hw.load_cifar10()
    train_set, held_out_set = ((images[i], labels[i]) for i in hw.split_held_out(labels))
    hw.keep_freed_memory()
    with appended(LOG, COLUMNS) as rows:
        for target in a.targets:
            network, changed = PLANS[target]
            results = []
            for seed in a.seeds:
                h = hw.Hyperparameters(pasted=0.0, **changed)
                *_, (_, _, seconds, held_out, _) = train(
                    NETWORKS[network][0], "Muon", h, seed, train_set, held_out_set, None)
                results.append((seconds, held_out))
                rows.writerow(dict(
                    target=target, network=network, epochs=h.epochs, sides=h.sides, ema=h.ema, seed=seed,
                    seconds=round(seconds, 1), held_out=round(held_out, 2), machine=a.machine))
                print(f"{target} %: seed {seed}, {seconds:.0f} s, {held_out:.2f} %", flush=True)
            reached = sum(held_out >= target for _, held_out in results)
            print(f"{target} %: median {statistics.median(s for s, _ in results):.0f} s; reached by {reached} of "
                  f"{len(results)} runs", flush=True)


if __name__ == "__main__":
    main()
