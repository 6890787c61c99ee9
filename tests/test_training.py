import contextlib
import copy
import errno
import io
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import assert_same, contents, epochs_trained

close = torch.testing.assert_close


@pytest.fixture(autouse=True, scope="module")
def clock(hw):
    """What measures time is replaced; here are the originals."""
    threads, originals = torch.get_num_threads(), (hw.fastest_precision, hw.tell_time)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        tiny.no_clock(patch.setattr, hw)
        yield originals
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(hw, clock, tmp_path_factory):
    """The result of a training, and the folder with its checkpoint."""
    folder = tmp_path_factory.mktemp("finished")
    return *tiny.train(hw, folder), folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[2], tmp_path, dirs_exist_ok=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_killed_run_resumes(hw, finished, tmp_path, capsys):
    """In epoch 1 and 2; in writing 2; after writing 3; in writing the trained weights; when these are in place."""
    moments = "batch 3 batch 8 write 1 moved 2 write 1 moved 1"
    done = subprocess.run([sys.executable, tiny.__file__, tmp_path, *moments.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(f"{tiny.FINISHED} (.*)", done.stdout) == ["0", "0", "1", "1", "3", "3"]
    assert done.stdout.count("ended by signal 9\n") == 6 and "damaged" not in done.stdout
    assert_same(tiny.train(hw, tmp_path), finished)
    assert epochs_trained(capsys.readouterr().out) == []
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]  # half-written files are gone


def test_a_retraining_replaces_the_finished_one_when_it_is_done(hw, finished, folder, capsys):
    ((name, content),) = contents(folder).items()
    tiny.train_until(hw, folder, 8, retrain=True)
    assert contents(folder)[name] == content and len(contents(folder)) == 2
    assert epochs_trained(capsys.readouterr().out) == [1]
    assert_same(tiny.train(hw, folder), finished)                     # meanwhile the finished one is loaded
    assert epochs_trained(capsys.readouterr().out) == []
    assert_same(tiny.train(hw, folder, retrain=True), finished)
    assert epochs_trained(capsys.readouterr().out) == [2, 3]
    assert list(contents(folder)) == [name] and contents(folder)[name] != content  # it took another time


OTHER = {"seed": dict(seed=1), "codes": dict(h=dict(top_codes=(9, 4))), "data": dict(images=40),
         "architecture": dict(model=dict(mlp_dims=(9, 11)))}


@pytest.mark.parametrize("what", OTHER)
def test_other_settings_use_another_file_and_give_other_weights(hw, finished, folder, what):
    before = contents(folder)
    model, _ = tiny.train(hw, folder, **OTHER[what])
    assert len(contents(folder)) == 2 and before.items() <= contents(folder).items()
    assert not torch.equal(*(torch.cat([p.flatten() for p in m.parameters()]) for m in (model, finished[0])))


def test_what_is_stored_is_what_was_trained(hw, finished):
    model = finished[0]
    for name, parameter in model.named_parameters():
        if name.startswith("stages.") and parameter.ndim == 2:
            scales, codes = hw.quantize(parameter, 9)                                      # h.top_codes is (9, 9)
            assert torch.equal(scales.float() * codes, parameter) and (codes.abs().amax(dim=1) == 9).all()
    again = hw.recompute_statistics(copy.deepcopy(model), tiny.images_and_labels()[0][:50])
    close(again.stem[1].running_mean, model.stem[1].running_mean, rtol=1e-3, atol=1e-3)


def test_what_is_rounded_is_what_is_stored(hw, tmp_path, monkeypatch):
    monkeypatch.setattr(hw, "round_weights", lambda model, *_: [p.data.fill_(1) for p in model.parameters()] and model)
    model, _ = tiny.train(hw, tmp_path)
    close(model.stages[1][1].blocks[0].ffn.linear1.weight, torch.ones(10, 8), atol=1e-3, rtol=0)


def test_rounding_that_makes_up_for_itself_answers_more_like_the_model(hw):
    torch.manual_seed(0)
    (images, _), model = tiny.images_and_labels(), hw.myViT(**tiny.MODEL)
    wanted, nearest = hw.predict(model, images), hw.unpack(*hw.pack(model, (3, 3)))
    rounded = hw.unpack(*hw.pack(hw.round_weights(model, images, (3, 3)), (3, 3)))
    off, least = ((hw.predict(m, images) - wanted).norm() for m in (nearest, rounded))
    assert least < 0.8 * off


def flipped(content):
    """One bit of one weight is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        record = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        place = content.index(archive.read(record)) + record.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]             # torch.load does not notice


def test_damaged_checkpoints_are_set_aside(hw, finished, folder, capsys):
    tiny.train_until(hw, folder, 8, retrain=True)
    before = {path: flipped(path.read_bytes()) for path in folder.iterdir()}                # finished, and running
    for path, content in before.items():
        path.write_bytes(content)
    assert_same(tiny.train(hw, folder), finished)
    output = capsys.readouterr().out
    assert epochs_trained(output) == [1, 1, 2, 3] and all(f"{path.name} is damaged" in output for path in before)
    aside = [(name.split(".damaged")[0], content) for name, content in contents(folder).items() if ".damaged" in name]
    assert sorted(aside) == sorted((path.name, content) for path, content in before.items())


def test_a_read_error_is_not_damage(hw, folder, monkeypatch):
    before = contents(folder)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(Path, "read_bytes", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        tiny.train(hw, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("refusals", [3, 1000])
def test_write_file_waits_for_a_locked_target(hw, tmp_path, monkeypatch, refusals):
    hw.write_file(path := tmp_path / "new" / "file", b"old")
    locked = [PermissionError(13, "locked")] * refusals + [mock.DEFAULT]
    monkeypatch.setattr(os, "replace", mock.Mock(wraps=os.replace, side_effect=locked))
    monkeypatch.setattr(hw.time, "sleep", mock.Mock())
    with pytest.raises(PermissionError) if refusals > 10 else contextlib.nullcontext():
        hw.write_file(path, b"new")
    assert contents(path.parent) == {"file": b"old" if refusals > 10 else b"new"}


@pytest.mark.parametrize("epochs, expected", [
    (1, [(0, 32, 0.3)]), (4, [(2, 16, 0), (2, 16, 0), (0, 32, 0.3), (0, 32, 0.3)])])
def test_small_pictures_cutmix_and_corruption_have_their_epochs(hw, epochs, expected):
    names = "cutmix", "corrupt", "augment"
    h = tiny.hyperparameters(hw, epochs=epochs, batch_size=5, sides=(16, 32), cutmix=1, cutmix_until=0.5, corrupt=0.3,
                             corrupt_from=0.5, mirror=epochs > 1)
    model, (images, labels) = hw.myViT(**tiny.MODEL), tiny.images_and_labels()
    optimizers = hw.make_optimizers(model, h)
    for epoch, (batches, side, share) in enumerate(expected, 1):
        spies = {name: mock.Mock(wraps=getattr(hw, name)) for name in names}
        with mock.patch.multiple(hw, **spies):
            hw.train_epoch(model, copy.deepcopy(model), optimizers, images[:10], labels[:10], epoch, h)
        (x, corrupted, _), _ = spies["corrupt"].call_args
        assert spies["cutmix"].call_count == batches
        assert (x.shape[2], corrupted) == (side, share)
        assert spies["augment"].call_args[0][1].any() == (epochs > 1)


def test_cutmix_weighs_both_labels_by_their_areas(hw):
    h = tiny.hyperparameters(hw, epochs=1, sides=(32,), shift=0, cutout=0, cutmix=1, cutmix_until=1, corrupt=0.0,
                             mirror=False)
    model, (images, labels) = hw.myViT(**tiny.MODEL), [some[:10] for some in tiny.images_and_labels()]
    z, others = copy.deepcopy(model)(hw.to_input(images)), (labels + 1) % 10
    with mock.patch.object(hw, "cutmix", lambda x, y, _: (x, (y + 1) % 10, 0.2)):
        loss, _ = hw.train_epoch(model, copy.deepcopy(model), hw.make_optimizers(model, h), images, labels, 1, h)
    assert loss == pytest.approx((0.8 * F.cross_entropy(z, labels) + 0.2 * F.cross_entropy(z, others)).item())


@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_any_number_of_pictures_is_corrupted(hw, n):
    x = torch.rand(n, 3, 8, 8)
    assert hw.corrupt(x, 1, torch.Generator()).shape == x.shape


def test_a_gradient_that_overflows_in_float16_is_left_out(hw):
    model, factors, h = hw.myViT(**tiny.MODEL), iter([math.inf]), tiny.hyperparameters(hw, batch_size=2)
    optimizers, (images, labels) = hw.make_optimizers(model, h), tiny.images_and_labels()
    weight = model.stages[1][1].blocks[0].ffn.linear1.weight
    before, _ = weight.detach().clone(), weight.register_hook(lambda gradient: gradient * next(factors, 1))
    some = images[:10], labels[:10]
    loss, _ = hw.train_epoch(model, copy.deepcopy(model), optimizers, *some, 1, h, dtype=torch.float16)
    assert 2 < loss < 3 and weight.isfinite().all() and not torch.equal(weight, before)
    assert all(state["momentum"].isfinite().all() for state in optimizers[0].state.values())


def test_non_finite_loss_stops_the_training(hw, tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 1, by step 50 of 60, at the learning rates 0\.017, 8\.6e\+29"):
        tiny.train(hw, tmp_path, dict(adamw_lr=1e30, batch_size=1), images=60)
    assert contents(tmp_path) == {}


def test_what_a_training_will_take_is_told_before_it_starts(hw, clock, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hw, "tell_time", clock[1])
    assert_same(tiny.train(hw, tmp_path), finished)                                        # timed steps leave no trace
    output = capsys.readouterr().out
    assert re.search(r"cpu, 1 threads, float32: .* s a step(?s:.*)minutes(?s:.*)\n +1 +\d", output)
    assert " 0.00 " in output and "nan" not in output                                      # validation accuracy


def test_a_training_that_moves_to_another_device_takes_its_number_type(hw, finished, tmp_path):
    tiny.train_until(hw, tmp_path, 8)
    (path,) = tmp_path.iterdir()
    state = torch.load(path)
    torch.save(dict(state, cuda=torch.float16) | dict(cpu=None), path)
    assert_same(tiny.train(hw, tmp_path), finished)
    assert state["cpu"] == torch.float32


@pytest.mark.parametrize("fail, expected", [([], torch.bfloat16), ([torch.bfloat16], torch.float32)])
def test_the_faster_number_type_is_taken_where_there_is_one_and_an_error_is_not_hidden(
        hw, clock, monkeypatch, fail, expected):
    def seconds(model, images, labels, h, dtype):
        if dtype in fail:
            raise RuntimeError("not on this device")
        return 2.0 if dtype == torch.float32 else 1.0
    monkeypatch.setattr(hw, "seconds_a_step", seconds)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert clock[0](None, *tiny.images_and_labels(), tiny.hyperparameters(hw)) == expected
    fail.append(torch.float32)
    with pytest.raises(RuntimeError, match="not on this device"):
        clock[0](None, *tiny.images_and_labels(), tiny.hyperparameters(hw))


def test_minutes_left_are_of_small_pictures_and_large_ones(hw, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hw.time, "perf_counter", itertools.count(0, 60).__next__)
    tiny.train(hw, tmp_path)                                              # of 16, 16 and 32 pixels, a minute each
    assert re.findall(r"(?m) 60\.0 +(\S+)$", capsys.readouterr().out) == ["5.0", "4.0", "0.0"]


def test_minutes_are_of_the_epochs_that_are_left(hw, clock, capsys, monkeypatch):
    monkeypatch.setattr(hw, "seconds_a_step", lambda *_: 6.0)
    images, labels = tiny.images_and_labels()
    clock[1](hw.myViT(**tiny.MODEL), images[:50], labels[:50], tiny.hyperparameters(hw), torch.float32, 1)
    output = capsys.readouterr().out
    assert "\n2 epochs take about 1.0 minutes" in output and "EPOCHS = 12: 6.0" in output


def test_muon_matches_torchs(hw):
    ours, theirs = ([torch.ones(shape).requires_grad_() for shape in 2 * [(12, 20), (20, 12)]] for _ in range(2))
    gradients = [[torch.randn(weight.shape) for weight in ours] for _ in range(4)]
    for optimizer, weights in ((hw.Muon, ours), (torch.optim.Muon, theirs)):
        step = optimizer(weights, lr=0.1, momentum=0.9, weight_decay=0.5).step
        for gradient in gradients:
            for weight, some in zip(weights, gradient):
                weight.grad = some.clone()
            step()
    for a, b in zip(ours, theirs):
        assert (a - b).norm() < 0.03 * (b - 0.95**4).norm()  # of what was added; torch's works in bfloat16
