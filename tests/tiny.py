"""A training of seconds, for test_training.py and, as a script, in processes that are killed at chosen moments:

    python tiny.py FOLDER MOMENT N [MOMENT N ...]

A MOMENT is what a process does for the N-th time when it is killed: `batch`, `write` (half-way through a checkpoint) or
`moved` (a checkpoint is in place, nothing after that is done). Each process resumes what the one before left.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

MODEL = dict(stem_dim=4, patch_size=2, dims=(6, 8), depths=(1, 1), heads=(0, 2), dim_head=3, mlp_dims=(9, 10),
             norms=("batch", "layer"))
STEPS = 5  # of 10 images
FINISHED = "epochs that are finished at the start:"


def hyperparameters(hw, **changed):
    return hw.Hyperparameters(**dict(epochs=3, batch_size=10, sides=(16, 16, 32)) | changed)


def images_and_labels():
    with np.load(Path(__file__).parent / "sample" / "cifar10.npz") as arrays:
        return torch.from_numpy(arrays["train_images"]), torch.from_numpy(arrays["train_labels"]).long()


def train(hw, folder, h=None, validation=True, images=50, model=(), **arguments):
    """Train on 50 images of the sample with 10, or none, for validation: (model as stored, history)."""
    x, y = images_and_labels()
    torch.manual_seed(0)
    return hw.train(hw.myViT(**MODEL | dict(model)), (x[:images], y[:images]), (x[50:], y[50:]) if validation else None,
                    h or hyperparameters(hw), folder=folder, device=torch.device("cpu"), **arguments)


def no_clock(patch, hw):
    """Nothing depends on the machine's speed, and no step but the training's own is done."""
    patch(hw, "fastest_precision", lambda *_: torch.float32)
    patch(hw, "tell_time", lambda *arguments: print(FINISHED, arguments[-1], flush=True))


def at_call(number, function, action):
    """The function, but for the given call, at which the action is called instead."""
    calls = iter(range(1, 10_000))
    return lambda *a, **k: (action if next(calls) == number else function)(*a, **k)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_kill(path, content):
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    kill()


def move_and_kill(*paths, replace=os.replace):
    replace(*paths)
    kill()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from run import load_definitions

    homework = load_definitions()
    no_clock(setattr, homework)
    torch.set_num_threads(1)
    places = {"batch": (homework, "augment", kill), "write": (Path, "write_bytes", write_half_and_kill),
              "moved": (os, "replace", move_and_kill)}
    for moment, number in zip(sys.argv[2::2], sys.argv[3::2]):
        if process := os.fork():
            print(f"{moment} {number}: ended by signal {os.WTERMSIG(os.waitpid(process, 0)[1])}", flush=True)
        else:
            owner, name, action = places[moment]
            setattr(owner, name, at_call(int(number), getattr(owner, name), action))
            train(homework, sys.argv[1])
            os._exit(0)
