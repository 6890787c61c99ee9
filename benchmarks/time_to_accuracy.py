"""Seconds of training until 57, 80 and 90 % of the held-out images are right: the median of three seeds.

    python benchmarks/time_to_accuracy.py [--network ours|coarse] [--targets 57 80 90] [--seeds 0 1 2] [--machine TEXT]

Each target has a training of its own, with rates that have fallen to zero at its end: a long training
is far below what it could reach by then. Scoring is not counted. Appends a row a run to time_to_accuracy.csv.
"""

import argparse
import os
import platform
import statistics
from pathlib import Path

from peers import NETWORKS, appended, hw, train

LOG = Path(__file__).with_suffix(".csv")
COLUMNS = ["target", "network", "epochs", "sides", "ema", "seed", "seconds", "held_out", "machine"]
PLANS = {  # network: {target in per cent: changed settings}
    "ours": {57: dict(epochs=1, sides=(24,), ema=0.98),
             80: dict(epochs=3, sides=(24, 24, 32), ema=0.99),
             90: dict(epochs=12, sides=(24, 24, 32), ema=0.996)},
    "coarse": {57: dict(epochs=1, sides=(32,), ema=0.98),
               80: dict(epochs=5, sides=(24, 24, 24, 24, 32), ema=0.99)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(PLANS), default="ours")
    parser.add_argument("--targets", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}", help="for the log")
    a = parser.parse_args()
    plans = PLANS[a.network]
    if unknown := set(a.targets or ()) - set(plans):
        parser.error(f"{a.network} has no plan for {', '.join(map(str, sorted(unknown)))} %; it has {list(plans)}")
    images, labels, _, _ = hw.load_cifar10()
    train_set, held_out_set = ((images[i], labels[i]) for i in hw.split_held_out(labels))
    hw.keep_freed_memory()
    with appended(LOG, COLUMNS) as rows:
        for target in a.targets or plans:
            results = []
            for seed in a.seeds:
                h = hw.Hyperparameters(pasted=0.0, **plans[target])
                *_, (_, _, seconds, held_out, _) = train(
                    NETWORKS[a.network][0], "Muon", h, seed, train_set, held_out_set, None)
                results.append((seconds, held_out))
                rows.writerow(dict(
                    target=target, network=a.network, epochs=h.epochs, sides=h.sides, ema=h.ema, seed=seed,
                    seconds=round(seconds, 1), held_out=round(held_out, 2), machine=a.machine))
                print(f"{target} %: seed {seed}, {seconds:.0f} s, {held_out:.2f} %", flush=True)
            reached = sum(held_out >= target for _, held_out in results)
            print(f"{target} %: median {statistics.median(s for s, _ in results):.0f} s; reached by {reached} of "
                  f"{len(results)} runs", flush=True)


if __name__ == "__main__":
    main()
