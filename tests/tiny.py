"""A training of seconds. As a script, `tiny.py FOLDER MOMENT N [MOMENT N ...]`, it runs in processes that are killed.

Each at its N-th `batch`, `write` (half-way) or `moved` (a checkpoint is in place); the next process resumes."""

import os
import re
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

MODEL = dict(stem_dim=4, patch_size=2, dims=(6, 8), depths=(1, 1), heads=(0, 2), dim_head=3, mlp_dims=(9, 10),
             norms=("batch", "layer"))
FINISHED = "epochs that are finished at the start:"


def hyperparameters(hw, **changed):
    return hw.Hyperparameters(**dict(epochs=3, batch_size=10, sides=(16, 16, 32), top_codes=(9, 9)) | changed)


def images_and_labels():
    with np.load(Path(__file__).parent / "sample" / "cifar10.npz") as arrays:
        return torch.from_numpy(arrays["train_images"]), torch.from_numpy(arrays["train_labels"]).long()


def train(hw, folder, h=(), images=50, model=(), **arguments):
    """Train on 50 images of the sample, in batches of 10, with 10 for validation: (model as stored, history)."""
    x, y = images_and_labels()
    torch.manual_seed(0)
    return hw.train(hw.myViT(**MODEL | dict(model)), (x[:images], y[:images]), (x[50:], y[50:]),
                    hyperparameters(hw, **dict(h)), folder=folder, device=torch.device("cpu"), **arguments)


def train_until(hw, folder, batch, **arguments):
    """Train, but stop before this batch."""
    stop = mock.Mock(side_effect=KeyboardInterrupt)
    with mock.patch.object(hw, "augment", at_call(batch, hw.augment, stop)), pytest.raises(KeyboardInterrupt):
        train(hw, folder, **arguments)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(result, expected):
    """The same weights to the last bit, and the same history but for the time it took."""
    (model, history), (other, other_history, _) = result, expected
    assert list(model.state_dict()) == list(other.state_dict()) and not model.training
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert [e | dict(seconds=0) for e in history] == [e | dict(seconds=0) for e in other_history]


def epochs_trained(output):
    return list(map(int, re.findall(r"(?m)^ +(\d+) +\d+\.\d{4} ", output)))


def no_clock(patch, hw):
    """Nothing depends on the machine's speed, and no step but the training's own is done."""
    patch(hw, "fastest_precision", lambda *_: torch.float32)
    patch(hw, "tell_time", lambda *arguments: print(FINISHED, arguments[-1], flush=True))


def at_call(number, function, action):
    """The function, but for the given call, at which the action is called instead."""
    calls = iter(range(1, 10_000))
    return lambda *a, **k: (action if next(calls) == number else function)(*a, **k)


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_kill(path, content):
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    kill()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from run import load_definitions
    homework = load_definitions()
    no_clock(setattr, homework)
    torch.set_num_threads(1)
    places = {"batch": (homework, "augment", kill), "write": (Path, "write_bytes", write_half_and_kill),
              "moved": (Path, "unlink", kill)}  # what write_file does next
    for moment, number in zip(sys.argv[2::2], sys.argv[3::2]):
        if process := os.fork():
            print(f"{moment} {number}: ended by signal {os.WTERMSIG(os.waitpid(process, 0)[1])}", flush=True)
        else:
            owner, name, action = places[moment]
            setattr(owner, name, at_call(int(number), getattr(owner, name), action))
            train(homework, sys.argv[1])
            os._exit(0)
