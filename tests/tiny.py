"""A training of seconds, for test_training.py and, as a script, in a process that is killed at a chosen moment:

    python tiny.py FOLDER MOMENT N

MOMENT is what the process does for the N-th time when it is killed: `batch`, `write` (half-way through a checkpoint) or
`moved` (a checkpoint is in place, nothing after that is done).
"""

import io
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

MODEL = dict(
    stem_dim=4, patch_size=2, merging="patch", dims=(6, 8), depths=(1, 1), heads=(0, 2), dim_head=3, mlp_dims=(9, 10),
    norms=("batch", "layer"))
STEPS = 5  # of 10 images


def hyperparameters(hw, **changed):
    return hw.Hyperparameters(**dict(epochs=3, batch_size=10) | changed)


def train(hw, folder, h=None, held_out=True, **arguments):
    """Train on 50 images of the sample with 10 held out, or none scored: (averaged model, history)."""
    with np.load(Path(__file__).parent / "sample" / "cifar10.npz") as arrays:
        images, labels = torch.from_numpy(arrays["train_images"]), torch.from_numpy(arrays["train_labels"])
    torch.manual_seed(0)
    held_out_set = (images[50:], labels[50:]) if held_out else None
    return hw.train(hw.myViT(**MODEL), (images[:50], labels[:50]), held_out_set, h or hyperparameters(hw),
                    folder=folder, device=torch.device("cpu"), **arguments)


def at_call(number, function, action):
    """The function, but for the given call, at which the action is called instead."""
    calls = iter(range(1, 10_000))
    return lambda *a, **k: (action if next(calls) == number else function)(*a, **k)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_kill(content, file):
    buffer = io.BytesIO()
    whole_save(content, buffer)
    file.write(buffer.getvalue()[:buffer.tell() // 2])
    file.flush()
    kill()


def move_and_kill(*paths):
    whole_replace(*paths)
    kill()


whole_save, whole_replace = torch.save, os.replace

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from run import load_definitions

    folder, moment, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    hw = load_definitions()
    hw.bfloat16_pays = lambda device: False  # as in test_training.py
    torch.set_num_threads(1)
    if moment == "batch":
        hw.augment = at_call(number, hw.augment, kill)
    elif moment == "write":
        torch.save = at_call(number, torch.save, write_half_and_kill)
    elif moment == "moved":
        os.replace = at_call(number, os.replace, move_and_kill)
    train(hw, folder)
