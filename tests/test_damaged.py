"""Damaged inputs and what is said of each: runs the table benchmarks/damaged.md, where ... stands for anything."""

import ast
import re
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, SAMPLE, SAMPLE_SHA256
from PIL import Image
from test_data import ARCHIVE, write_npm, write_pictures
from test_submission import content_of, trained_model
from test_training import flipped
from torch import nn

from run import load_definitions

ROWS = "".join(["ImageId,Prediction\n", *(f"{i},{i % 10}\n" for i in range(1, 31))])


def picture(hw, folder, dtype, kind):
    Image.fromarray(np.full((32, 32), 200, dtype)).save(folder / "x.png", kind)
    return partial(hw.read_picture, "x.png")


def pictures(hw, folder, *names):
    write_pictures(folder / "pets", *names)
    return partial(hw.load_dataset, "pets")


def cifar10(hw, folder, name, cut):
    """CIFAR-10's images as an earlier run kept them, or as an archive with other labels."""
    with np.load(SAMPLE) as arrays:
        write_npm(folder, [np.roll(a, 1) if "label" in name else a for name, a in arrays.items()][:4])
    content = SAMPLE.read_bytes() if name == SAMPLE.name else (folder / ARCHIVE).read_bytes()
    (folder / ARCHIVE).unlink()
    (folder / name).write_bytes(content[:len(content) - cut])
    return partial(hw.load_dataset, "CIFAR10", folder, SAMPLE_SHA256)


def checkpoint(hw, folder, change):
    torch.save(dict(weights=torch.arange(100.0)), path := folder / "0123abcd.pt")
    path.write_bytes(change(path.read_bytes()))
    return partial(hw.load_checkpoint, path)


def pt(hw, folder, make):
    (folder / "B1_submission.pt").write_bytes(make(hw))
    return partial(hw.read_pt, hw.Path("B1_submission.pt"))


def csv(hw, folder, text):
    (folder / "B1_submission.csv").write_bytes(text.encode())
    return partial(hw.read_csv, folder / "B1_submission.csv", 30, 10)


def setting(hw, folder, text):
    name, value = text.strip("`").split(" = ")
    def read():
        other = load_definitions(name="homework_set", **{name: ast.literal_eval(value)})
        other.split_validation(torch.arange(20) % 10)
        other.load_dataset()
    return read


DAMAGE = {
    "16 bits a channel": (picture, "u2", "PNG"), "32 bits a channel": (picture, "i4", "TIFF"),
    "floating point": (picture, "f4", "TIFF"), "a PDF named .png": (picture, "u1", "PDF"),
    "no train/ and test/": (pictures, "a/1.png", "b/1.png"), "an empty folder": (pictures,),
    "other classes in val/": (pictures, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/B/1.png"),
    "one class only": (pictures, "train/a/1.png", "test/a/1.png"),
    "cifar10.npz cut short": (cifar10, SAMPLE.name, 1000), "npm archive with other labels": (cifar10, ARCHIVE, 0),
    "npm archive cut short": (cifar10, ARCHIVE, 1000),
    "official archive cut short": (cifar10, torchvision.datasets.CIFAR10.filename, 1000),
    "one bit flipped": (checkpoint, flipped), "cut in half": (checkpoint, lambda content: content[:len(content) // 2]),
    "other bytes": (checkpoint, lambda content: b"x" * 1000), "no bytes": (checkpoint, lambda content: b""),
    "`.pt` cut short": (pt, lambda hw: content_of(hw, trained_model(hw))[:-100]), "empty `.pt`": (pt, lambda hw: b""),
    "only a state_dict": (pt, lambda hw: hw.saved(nn.Linear(2, 2).state_dict())),
    "a later `.pt`": (pt, lambda hw: hw.saved(hw.Packed((9, *hw.pack(trained_model(hw), (9, 3))[1:], "more")))),
    "byte-order mark": (csv, "\ufeff" + ROWS), "semicolons": (csv, ROWS.replace(",", ";")),
    "Windows line ends": (csv, ROWS.replace("\n", "\r\n")), "numbers as 1.0": (csv, ROWS.replace("1,1\n", "1,1.0\n")),
    "a row too few": (csv, ROWS[:-5]), "class 10 of 0 to 9": (csv, ROWS[:-2] + "10\n"),
}
TABLE = re.findall(r"(?m)^\| (?!damaged )(.+?) \| (.+) \|$", (ROOT / "benchmarks" / "damaged.md").read_text("utf-8"))


def test_the_table_has_all():
    assert {*DAMAGE} == {what for what, _ in TABLE if " = " not in what} and len(TABLE) >= 30


@pytest.mark.parametrize("what, said", TABLE, ids=[what for what, _ in TABLE])
def test_each_is_told_and_no_file_is_lost(hw, tmp_path, monkeypatch, capsys, what, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hw, "run_quietly", mock.Mock(side_effect=ConnectionError("no network")))
    write, *how = DAMAGE.get(what, (setting, what))
    read, message = write(hw, tmp_path, *how), ""
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*.*"))
    try:
        assert read() is None
    except (ValueError, RuntimeError) as error:
        message = str(error)
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*.*")) == before
    parts = [re.escape(part.strip()) for part in said.split("...")]
    assert re.search("(?s:.*)".join(parts), message + capsys.readouterr().out)
