"""Kill `run.py RETRAIN=True` with SIGKILL ten times, resume it each time, and compare with a run left alone.

    python benchmarks/kill_resume.py

A short training (4 epochs of 1,000 images) in a scratch copy. Four kills hit while a checkpoint is being written, the
others come at random moments. Writes benchmarks/kill_resume.csv.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions  # noqa: E402

SETTINGS = ["RETRAIN=True", "EPOCHS=4", "TRAIN_LIMIT=1000", "HELD_OUT=500"]


def start(folder: Path) -> psutil.Popen:
    command = [sys.executable, "run.py", *SETTINGS]
    return psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: psutil.Popen) -> None:
    for p in [*process.children(recursive=True), process]:
        p.kill()
    psutil.wait_procs([process])


def scratch_copy(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    for file in ("run.py", "DL_HW3_StudentID.ipynb"):
        shutil.copy(ROOT / file, folder)
    (folder / "data").symlink_to((ROOT / "data").resolve())
    return folder


def weights(folder: Path) -> dict:
    """The packed weights of all trainings, by file: the network and what is trained on from it with fewer bits."""
    hw = load_definitions()
    files = (folder / "checkpoints").glob("**/????????.pt")
    return {path.name: hw.load_checkpoint(path)["packed"][2] for path in files}


def unfinished(folder: Path) -> set[Path]:
    """Files that are being written, and those whose writer was killed."""
    return set((folder / "checkpoints").glob("**/.*.tmp"))


def epochs_done(hw, folder: Path) -> int:
    found = list((folder / "checkpoints").glob("**/*-last.pt"))
    return len(hw.load_checkpoint(found[0])["history"]) if found else 0


def main() -> None:
    random.seed(0)
    hw, rows = load_definitions(), []
    with tempfile.TemporaryDirectory() as parent:
        alone, killed = scratch_copy(Path(parent), "alone"), scratch_copy(Path(parent), "killed")
        assert start(alone).wait() == 0
        for attempt in range(10):
            in_write = attempt % 3 == 1 or attempt == 9
            before, process = unfinished(killed), start(killed)
            until = time.time() + random.uniform(10, 40)
            while process.poll() is None and (not unfinished(killed) - before if in_write else time.time() < until):
                time.sleep(0.001)
            if process.poll() is not None:
                print("finished before it could be killed")
                break
            kill(process)
            moment = "writing" if in_write else "random"
            rows.append(dict(kill=attempt + 1, moment=moment, epochs=epochs_done(hw, killed)))
            print(rows[-1], flush=True)
        if process.poll() is not None and process.returncode != 0:
            assert start(killed).wait() == 0
        a, b = weights(alone), weights(killed)
        equal = a.keys() == b.keys() and all(hw.torch.equal(a[name], b[name]) for name in a)
    pd.DataFrame(rows).to_csv(ROOT / "benchmarks/kill_resume.csv", index=False)
    print(f"{len(rows)} kills; the final weights are {'bit for bit the same' if equal else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
