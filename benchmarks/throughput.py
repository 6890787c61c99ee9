"""Inference in images a second, and the memory that training takes, of the networks in peers.py.

    python benchmarks/throughput.py [--only NAME ...]

float32. Inference: eval mode, batches of 1 and of 256, median of five rounds of about two seconds. Memory: the most
that a process has held (peak resident set) over five training steps of 256 images, less what it held before the network
was made; malloc is told to keep what was freed, as in the notebook. Appends to benchmarks/throughput.csv.
"""

import argparse
import copy
import csv
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from peers import NETWORKS, OPTIMIZERS, PLAIN, hw

LOG = Path(__file__).with_suffix(".csv")
COLUMNS = ["network", "parameters", "images_per_second_batch_1", "images_per_second_batch_256", "training_megabytes",
           "threads"]


def images_per_second(model, batch: int) -> float:
    x, rates = torch.rand(batch, 3, 32, 32), []
    with torch.inference_mode():
        for _ in range(6):  # the first one warms up
            start, n = time.perf_counter(), 0
            while time.perf_counter() - start < 2:
                model(x)
                n += batch
            rates.append(n / (time.perf_counter() - start))
    return sorted(rates[1:])[2]


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(name: str) -> None:
    """One network, in this process; writes its row."""
    make, (optimizer, *_) = NETWORKS[name]
    hw.keep_freed_memory()
    before = peak_megabytes()
    model = make().to(memory_format=torch.channels_last)
    optimizers = OPTIMIZERS[optimizer][0](model)
    images, labels = torch.randint(0, 256, (1280, 32, 32, 3), dtype=torch.uint8), torch.randint(0, 10, (1280,))
    hw.train_epoch(model, copy.deepcopy(model), optimizers, images, labels, labels > 4, 1,
                   hw.Hyperparameters(**PLAIN), torch.Generator(), False)
    memory = peak_megabytes() - before
    model.eval()
    row = dict(network=name, parameters=sum(p.numel() for p in model.parameters()), threads=torch.get_num_threads(),
               images_per_second_batch_1=round(images_per_second(model, 1)),
               images_per_second_batch_256=round(images_per_second(model, 256)), training_megabytes=round(memory))
    new = not LOG.exists()
    with LOG.open("a", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            rows.writeheader()
        rows.writerow(row)
    print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--here", action="store_true", help="in this process; else each network gets its own")
    a = parser.parse_args()
    for name in a.only:
        if a.here:
            measure(name)
        else:
            subprocess.run([sys.executable, __file__, "--here", "--only", name], check=True)


if __name__ == "__main__":
    main()
