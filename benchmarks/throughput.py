"""How fast does a network answer, how much memory does its training take, how long does a step take?

    python benchmarks/throughput.py [--only NAME ...]

Answer: README.md, "Speed and memory"; rows in throughput.csv. About a minute a network of networks.py. float32, each in
a process of its own. Inference: median of five rounds of two seconds. Memory: the most that the process has held over
five training steps of 256 images, less what it held before the network was made. Step: the fastest of those five.
"""

import argparse
import copy
import subprocess
import sys
import time
from statistics import median

import torch
from harness import OPTIMIZERS, SHORT, chosen, hw, log, parameters, prepared
from networks import NETWORKS


def images_per_second(model, batch, seconds=2.0) -> float:
    x, rates = torch.rand(batch, 3, 32, 32), []
    with torch.inference_mode():
        for _ in range(6):  # the first one warms up
            start, n = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                model(x)
                n += batch
            rates.append(n / (time.perf_counter() - start))
    return median(rates[1:])


def peak_megabytes() -> float:
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(name, seconds=2.0, batch=256) -> dict:
    """{measure: (value, unit)} of a network, in this process."""
    before = peak_megabytes()
    model = NETWORKS[name].make().to(memory_format=torch.channels_last)
    optimizers, averaged = prepared(OPTIMIZERS[NETWORKS[name].optimizers[0]](model)), copy.deepcopy(model)
    h = hw.Hyperparameters(epochs=1, batch_size=batch, sides=(32,), **SHORT)
    images, labels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8), torch.randint(0, 10, (batch,))
    steps = []
    for _ in range(5):
        start = time.perf_counter()
        hw.train_epoch(model, averaged, optimizers, images, labels, 1, h)
        steps.append(1000 * (time.perf_counter() - start))
    memory = peak_megabytes() - before
    model.eval()
    return {"parameters": (parameters(model), "parameters"),
            "inference in batches of 1": (round(images_per_second(model, 1, seconds)), "images/s"),
            f"inference in batches of {batch}": (round(images_per_second(model, batch, seconds)), "images/s"),
            f"memory of training steps of {batch} images": (round(memory), "MB"),
            f"training step of {batch} images": (round(min(steps)), "ms")}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--here", action="store_true", help="in this process; else each network gets its own")
    a = parser.parse_args(argv)
    for name in chosen(parser, a.only, NETWORKS):
        if not a.here:
            subprocess.run([sys.executable, __file__, "--here", "--only", name], check=True)
            continue
        for what, (value, unit) in measure(name).items():
            log("throughput", question="throughput", network=name, measure=what, value=value, unit=unit,
                differs=f"{torch.get_num_threads()} threads, float32")
            print(f"{name}: {what} {value} {unit}", flush=True)


if __name__ == "__main__":
    main()
