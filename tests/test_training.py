import copy
import errno
import functools
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

close = torch.testing.assert_close


@pytest.fixture(autouse=True, scope="module")
def repeatable(hw):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_clock(patch.setattr, hw)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(hw, repeatable, tmp_path_factory):
    """A folder with the checkpoint of a finished training; and its result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, tiny.train(hw, folder)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of that folder."""
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def assert_same(result, expected):
    """The same weights to the last bit, and the same history but for the time it took."""
    (model, history), (other, other_history) = result, expected
    assert list(model.state_dict()) == list(other.state_dict()) and not model.training
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert [e | dict(seconds=0) for e in history] == [e | dict(seconds=0) for e in other_history]


def epochs_trained(capsys):
    """The epochs that the output since the last call has a line for."""
    return list(map(int, re.findall(r"(?m)^ +(\d+) +\d+\.\d{4} ", capsys.readouterr().out)))


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


def train_until(hw, folder, batch, **arguments):
    """Train, but stop at this batch."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(hw, "augment", tiny.at_call(batch, hw.augment, stop))
        tiny.train(hw, folder, **arguments)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# resuming

@pytest.mark.parametrize("batch", [1, 6, 9, 15])
def test_a_run_stopped_within_an_epoch_resumes(hw, finished, tmp_path, capsys, batch):
    train_until(hw, tmp_path, batch)
    capsys.readouterr()
    assert_same(tiny.train(hw, tmp_path), finished[1])
    assert epochs_trained(capsys) == [1, 2, 3][(batch - 1) // tiny.STEPS:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_killed_run_resumes(hw, finished, tmp_path, capsys):
    moments = {
        "batch 3": 0,   # in epoch 1, with nothing saved yet
        "batch 8": 0,   # in epoch 2
        "write 1": 1,   # while the checkpoint of epoch 2 is written
        "moved 2": 1,   # when that of epoch 3 is in place, and the trained weights are not written
        "write 1 ": 3,  # while these are written
        "moved 1": 3,   # when they are in place, and the checkpoint is not removed yet
    }
    command = [sys.executable, tiny.__file__, tmp_path, *" ".join(moments).split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(f"{tiny.FINISHED} (.*)", done.stdout) == [str(n) for n in moments.values()]
    assert done.stdout.count("ended by signal 9\n") == len(moments) and "damaged" not in done.stdout
    assert_same(tiny.train(hw, tmp_path), finished[1])
    assert epochs_trained(capsys) == []
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]  # half-written files are gone


def test_a_retraining_replaces_the_finished_one_when_it_is_done(hw, finished, folder, capsys):
    ((name, content),) = contents(folder).items()
    train_until(hw, folder, 8, retrain=True)
    assert contents(folder)[name] == content and len(contents(folder)) == 2
    capsys.readouterr()
    assert_same(tiny.train(hw, folder), finished[1])                  # meanwhile the finished one is what is loaded
    assert epochs_trained(capsys) == []
    assert_same(tiny.train(hw, folder, retrain=True), finished[1])
    assert epochs_trained(capsys) == [2, 3]
    assert list(contents(folder)) == [name] and contents(folder)[name] != content  # it took another time


OTHER = {"seed": dict(seed=1), "rate": dict(h=dict(muon_lr=0.01)), "bits": dict(h=dict(bits=5)), "data": dict(images=40),
         "epochs": dict(h=dict(epochs=1)), "architecture": dict(model=dict(mlp_dims=(9, 11)))}


@pytest.mark.parametrize("what", OTHER)
def test_other_settings_use_another_file_and_give_other_weights(hw, finished, folder, what):
    changed, before = dict(OTHER[what]), contents(folder)
    if "h" in changed:
        changed["h"] = tiny.hyperparameters(hw, **changed["h"])
    model, _ = tiny.train(hw, folder, **changed)
    assert len(contents(folder)) == 2 and before.items() <= contents(folder).items()
    weights, others = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, finished[1][0]))
    assert not torch.equal(weights, others)


def test_validation_does_not_change_the_training(hw, finished, tmp_path):
    model, history = tiny.train(hw, tmp_path, validation=False)
    assert all(e["validation"] is None for e in history)
    assert_same((model, [e | dict(validation=u["validation"]) for e, u in zip(history, finished[1][1])]), finished[1])


# damage

def flipped(content, path):
    """One bit of one weight is another: the archive can be opened, and torch.load would not notice."""
    with zipfile.ZipFile(path) as archive:
        record = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        place = content.index(archive.read(record)) + record.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]


DAMAGE = {"truncated": lambda content, path: content[:len(content) // 2], "flipped": flipped,
          "garbage": lambda content, path: b"no checkpoint " * 100, "empty": lambda content, path: b""}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("which", ["finished", "running"])
def test_a_damaged_checkpoint_is_set_aside(hw, finished, tmp_path, capsys, which, how):
    damaged = []
    for _ in range(2):                                                # the second one must not overwrite the first
        if which == "running":
            train_until(hw, tmp_path, 8, retrain=True)
        else:
            tiny.train(hw, tmp_path)
        (file,) = [p for p in tmp_path.iterdir() if ("-running" in p.name) == (which == "running") and p.suffix == ".pt"]
        damaged.append(DAMAGE[how](file.read_bytes(), file))
        file.write_bytes(damaged[-1])
        capsys.readouterr()
        assert_same(tiny.train(hw, tmp_path, retrain=which == "running"), finished[1])
        output = capsys.readouterr().out
        assert f"{file.name} is damaged" in output and output.count("\n    ") >= 3
    assert sorted(c for name, c in contents(tmp_path).items() if "damaged" in name) == sorted(damaged)


@pytest.mark.parametrize("running", [False, True])
def test_a_read_error_is_not_damage(hw, finished, folder, monkeypatch, running):
    if running:
        train_until(hw, folder, 8, retrain=True)
    before = contents(folder)

    def fails(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(Path, "read_bytes", fails)
        tiny.train(hw, folder, retrain=running)
    assert contents(folder) == before


@pytest.mark.parametrize("refusals", [0, 3, 10**6])
def test_write_file_replaces_a_file_that_is_locked_for_a_moment(hw, tmp_path, monkeypatch, refusals):
    def replace(*paths):
        calls.append(paths)
        if len(calls) <= refusals:
            raise PermissionError(13, "The process cannot access the file")
        whole_replace(*paths)

    path, calls, slept, whole_replace = tmp_path / "new" / "file", [], [], os.replace
    hw.write_file(path, b"old")
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(hw.time, "sleep", slept.append)
    if refusals < 10:
        hw.write_file(path, b"new")
    else:
        with pytest.raises(PermissionError):
            hw.write_file(path, b"new")
        assert 1 <= sum(slept) <= 5
    assert contents(path.parent) == {"file": b"old" if refusals > 10 else b"new"}
