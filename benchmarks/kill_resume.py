"""Does a training that is killed at any moment, and started again, end with the same weights?

    python benchmarks/kill_resume.py [--kills 20]

Answer: README.md, "Killed and resumed"; a row in kill_resume.csv. About five minutes. Trainings of a tiny network are
killed with SIGKILL, every other time as soon as a file is being written, else at a random moment, and started again
until they are finished; then their weights are compared with those of a training that was left alone.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from harness import hw, log

EPOCHS, IMAGES = 20, 400


def train(folder) -> None:
    """A training of seconds, in this process: started, or resumed."""
    torch.set_num_threads(1)
    hw.fastest_precision = lambda *a: torch.float32  # else two trainings might take different ones
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8), torch.randint(0, 10, (IMAGES,))
    model = hw.myViT(stem_dim=8, patch_size=2, dims=(16, 16), depths=(1, 1), heads=(0, 2), dim_head=8,
                     mlp_dims=(32, 32), norms=("batch", "layer"))
    print("ready", flush=True)
    trained, _ = hw.train(model, (images, labels), (images[:100], labels[:100]), folder=folder, retrain=False,
                          h=hw.Hyperparameters(epochs=EPOCHS, batch_size=50))
    torch.save(trained.state_dict(), folder / "weights")


def half_written(folder) -> set:
    with suppress(FileNotFoundError):  # it has just been moved into place
        return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*.tmp")}
    return set()


def life(folder, seconds=float("inf"), writing=False) -> tuple[str, float]:
    """A process, killed after so many seconds or when it writes: what it was at ("done": its end), and its seconds."""
    before = half_written(folder)
    process = subprocess.Popen([sys.executable, __file__, "--train", str(folder)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.readline()  # it is ready
    start = time.time()
    while process.poll() is None and time.time() < start + seconds and not (writing and half_written(folder) - before):
        time.sleep(0 if writing else 0.01)
    process.kill()
    lived = time.time() - start
    error = process.communicate()[1]
    if process.returncode not in (0, -9):
        raise RuntimeError(error)
    at = "done" if process.returncode == 0 else "writing" if half_written(folder) - before else "mid-epoch"
    return at, lived


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.train:
        return train(a.train)
    random.seed(0)
    kills, equal = [], []
    with tempfile.TemporaryDirectory() as parent:
        alone = Path(tempfile.mkdtemp(dir=parent))
        _, seconds = life(alone)
        wanted = torch.load(alone / "weights")
        while len(kills) < a.kills:
            folder, ended = Path(tempfile.mkdtemp(dir=parent)), ""
            while ended != "done":
                more, writing = len(kills) < a.kills, len(kills) % 2 == 1
                left = random.uniform(0, seconds / 3) if more and not writing else float("inf")
                ended, _ = life(folder, left, more and writing)
                kills += [ended] * (ended != "done")
                print(f"{len(kills)} kills: {ended}", flush=True)
            weights = torch.load(folder / "weights")
            equal.append(weights.keys() == wanted.keys() and all(map(torch.equal, weights.values(), wanted.values())))
    differs = f"{len(kills)} kills, {kills.count('writing')} of them while writing; {EPOCHS} epochs of {IMAGES} images"
    log("kill_resume", question="kill and resume", network="ours, tiny", differs=differs, seed=0, images=IMAGES,
        epochs=EPOCHS, measure="final weights equal, bit for bit", value=sum(equal), unit=f"of {len(equal)} trainings")
    print(f"{differs}: the same final weights in {sum(equal)} of {len(equal)} trainings")


if __name__ == "__main__":
    main()
