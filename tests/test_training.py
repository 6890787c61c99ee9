import inspect
import math
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import torch

from run import load_definitions


@pytest.fixture(autouse=True, scope="module")
def repeatable(hw):
    """One thread; and whether bfloat16 pays is measured by the clock, on which no test may depend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hw, "bfloat16_pays", lambda device: False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(hw, repeatable, tmp_path_factory):
    return tiny.train(hw, tmp_path_factory.mktemp("uninterrupted"))


def assert_same(result, expected):
    """The same weights to the last bit, and the same history but for the time it took."""
    (model, history), (expected_model, expected_history) = result, expected
    for (name, tensor), other in zip(model.state_dict().items(), expected_model.state_dict().values()):
        assert torch.equal(tensor, other), name
    assert [e | dict(seconds=0) for e in history] == [e | dict(seconds=0) for e in expected_history]
    assert not model.training


def epochs_trained(capsys):
    """The epochs that the output since the last call has a line for; and the output."""
    output = capsys.readouterr().out
    lines = re.findall(r"[\n\r] *(\d+) +\d+\.\d{4} +\d+\.\d\d +\d+\.\d\d +\d+\.\d", output)
    return [int(epoch) for epoch in lines], output


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


def train_until(hw, folder, batch, **arguments):
    """Train, but stop at this batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hw, "augment", tiny.at_call(batch, hw.augment, stop))
        with pytest.raises(Stopped):
            tiny.train(hw, folder, **arguments)


def checkpoints(folder):
    return sorted(p.name for p in folder.iterdir())


# resuming

def test_training_is_fixed_by_the_seed(hw, uninterrupted, tmp_path):
    assert_same(tiny.train(hw, tmp_path), uninterrupted)
    other, _ = tiny.train(hw, tmp_path, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(other.parameters(), uninterrupted[0].parameters()))


def test_scoring_held_out_images_does_not_change_the_training(hw, uninterrupted, tmp_path):
    model, history = tiny.train(hw, tmp_path, held_out=False)
    assert all(math.isnan(e["held_out"]) for e in history)
    assert_same((model, [e | dict(held_out=u["held_out"]) for e, u in zip(history, uninterrupted[1])]), uninterrupted)


def test_a_complete_checkpoint_skips_training(hw, uninterrupted, tmp_path, capsys):
    tiny.train(hw, tmp_path)
    assert epochs_trained(capsys)[0] == [1, 2, 3]
    files = checkpoints(tmp_path)
    assert len(files) == 1
    again = tiny.train(hw, tmp_path)
    epochs, output = epochs_trained(capsys)
    assert epochs == [] and f"trained weights from {tmp_path / files[0]}" in output
    assert_same(again, uninterrupted)
    assert checkpoints(tmp_path) == files


@pytest.mark.parametrize("batch", [1, 3, 6, 9, 15])
def test_a_run_stopped_within_an_epoch_resumes(hw, uninterrupted, tmp_path, capsys, batch):
    train_until(hw, tmp_path, batch)
    finished = (batch - 1) // tiny.STEPS
    capsys.readouterr()
    resumed = tiny.train(hw, tmp_path)
    assert epochs_trained(capsys)[0] == [1, 2, 3][finished:]
    assert_same(resumed, uninterrupted)


def test_a_killed_run_resumes(hw, uninterrupted, tmp_path, capsys):
    starts = [
        ("batch", 3, None),   # in epoch 1, with nothing saved yet
        ("batch", 8, None),   # in epoch 2
        ("write", 1, 1),      # while the checkpoint of epoch 2 is written
        ("moved", 2, 1),      # when that of epoch 3 is in place, and the trained weights are not written
        ("write", 1, 3),      # while these are written
        ("moved", 1, 3),      # when they are in place, and the checkpoint is not removed yet
    ]
    for moment, number, resumes in starts:
        command = [sys.executable, tiny.__file__, tmp_path, moment, str(number)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert ("resumed after" in done.stdout) == bool(resumes)
        assert not resumes or f"resumed after epoch {resumes} of 3" in done.stdout
        assert "damaged" not in done.stdout
    result = tiny.train(hw, tmp_path)
    assert epochs_trained(capsys)[0] == []
    assert_same(result, uninterrupted)
    assert not [name for name in checkpoints(tmp_path) if name.endswith(".tmp")]  # half-written files are gone


def test_resuming_does_not_depend_on_a_second_measurement(hw, uninterrupted, tmp_path, monkeypatch):
    train_until(hw, tmp_path, 8)
    monkeypatch.setattr(hw, "bfloat16_pays", lambda device: True)  # the clock says otherwise this time
    assert_same(tiny.train(hw, tmp_path), uninterrupted)


def test_a_retraining_replaces_the_trained_weights_when_it_is_done(hw, uninterrupted, tmp_path, capsys):
    anew = tmp_path / "anew"
    tiny.train(hw, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    train_until(hw, anew, 12)
    assert file.stat().st_mtime_ns == before
    capsys.readouterr()
    assert_same(tiny.train(hw, anew), uninterrupted)
    assert epochs_trained(capsys)[0] == [3]
    assert file.stat().st_mtime_ns == before
    hw.keep_retrained(anew, tmp_path)
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_mtime_ns > before
    assert_same(tiny.train(hw, tmp_path), uninterrupted)
    hw.keep_retrained(anew, tmp_path)                          # a cell may be run twice
    hw.keep_retrained(tmp_path, tmp_path)                      # no retraining
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("batch, finished", [(1, 0), (3, 0), (8, 1)])
def test_a_training_in_two_parts_resumes_in_the_second(hw, tmp_path, capsys, batch, finished):
    def both(second=tiny.train):
        first, _ = tiny.train(hw, tmp_path)
        return second(hw, tmp_path, tiny.hyperparameters(hw, spoilt=0.5), before=hw.sha256_of(first))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hw, "augment", tiny.at_call(3 * tiny.STEPS + batch, hw.augment, stop))
        with pytest.raises(Stopped):
            both()
    assert epochs_trained(capsys)[0] == [1, 2, 3, *range(1, 1 + finished)]
    resumed = both()
    assert epochs_trained(capsys)[0] == list(range(1 + finished, 4))
    shutil.rmtree(tmp_path)
    assert_same(resumed, both())


def test_retrain_trains_in_a_folder_of_its_own():
    old, new = (load_definitions(name=f"homework_{retrain}", RETRAIN=retrain) for retrain in (False, True))
    assert old.TRAINED == old.CHECKPOINTS == new.CHECKPOINTS == new.TRAINED.parent
    for hw in (old, new):
        assert inspect.signature(hw.train).parameters["folder"].default == hw.TRAINED
        assert inspect.signature(hw.keep_retrained).parameters["trained"].default == hw.TRAINED


@pytest.mark.parametrize("other", [dict(seed=1), dict(h=dict(muon_lr=0.01)), dict(h=dict(epochs=1))],
                         ids=["seed", "learning rate", "epochs"])
def test_other_settings_use_another_file(hw, tmp_path, other):
    tiny.train(hw, tmp_path)
    (first,) = tmp_path.iterdir()
    content = first.read_bytes()
    tiny.train(hw, tmp_path, **other | ({"h": tiny.hyperparameters(hw, **other["h"])} if "h" in other else {}))
    assert first.read_bytes() == content
    assert len(checkpoints(tmp_path)) == 2


# damage

def flipped(content, path):
    """One bit of one weight is another: the archive can still be opened, and torch.load would not notice."""
    with zipfile.ZipFile(path) as archive:
        record = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        with archive.open(record) as file:
            start = content.index(file.read())
    place = start + record.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]


DAMAGE = {
    "truncated": lambda content, path: content[:len(content) // 2],
    "flipped": flipped,
    "garbage": lambda content, path: b"no checkpoint " * 100,
    "empty": lambda content, path: b"",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("which", ["trained", "last"])
def test_a_damaged_checkpoint_is_set_aside(hw, uninterrupted, tmp_path, capsys, which, how):
    if which == "trained":
        tiny.train(hw, tmp_path)
    else:
        train_until(hw, tmp_path, 8)
    (file,) = tmp_path.iterdir()
    bad = DAMAGE[how](file.read_bytes(), file)
    file.write_bytes(bad)
    capsys.readouterr()
    result = tiny.train(hw, tmp_path)
    epochs, output = epochs_trained(capsys)
    assert epochs == [1, 2, 3]
    assert f"{file.name} is damaged" in output and f"{file.name}.damaged" in output
    assert Path(f"{file}.damaged").read_bytes() == bad
    assert_same(result, uninterrupted)


def test_a_flipped_bit_would_pass_torch_load(hw, tmp_path):
    """Else the case above tests no more than the truncated file does."""
    tiny.train(hw, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(flipped(file.read_bytes(), file))
    torch.load(file)


def test_non_finite_loss_stops_the_training(hw, tmp_path):
    h = tiny.hyperparameters(hw, adamw_lr=1e30)
    rate = 1e30 * hw.schedule(1, 15, h.warmup)
    with pytest.raises(FloatingPointError, match=re.escape("in epoch 1, step 2 of 5")) as stopped:
        tiny.train(hw, tmp_path, h)
    assert f"{rate:.2g} (AdamW)" in str(stopped.value) and "(Muon)" in str(stopped.value)
    assert checkpoints(tmp_path) == []


# files

def test_write_atomically_replaces_the_whole_file(hw, tmp_path):
    path = tmp_path / "new" / "file"
    hw.write_atomically(path, lambda temporary: Path(temporary).write_bytes(b"one"))
    hw.write_atomically(path, lambda temporary: Path(temporary).write_bytes(b"2"))
    assert path.read_bytes() == b"2" and checkpoints(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_atomically_keeps_the_old_file_when_writing_fails(hw, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(temporary):
        Path(temporary).write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hw.write_atomically(path, write)
    assert path.read_bytes() == b"old" and checkpoints(tmp_path) == ["file"]


# pictures that grow

def test_pictures_grow_in_equal_parts_of_the_training(hw, tmp_path, monkeypatch):
    seen = []

    def shrink(x, side):
        seen.append(side)
        return whole_shrink(x, side)

    whole_shrink = hw.shrink
    monkeypatch.setattr(hw, "shrink", shrink)
    tiny.train(hw, tmp_path, tiny.hyperparameters(hw, epochs=4, sides=(16, 32)))
    assert seen == [16] * 2 * tiny.STEPS + [32] * 2 * tiny.STEPS


def test_shrink_keeps_colours_and_places(hw):
    x = torch.zeros(2, 3, 32, 32)
    x[0, 1, :16] = 1                                     # the upper half is green
    small = hw.shrink(x, 24)
    assert small.shape == (2, 3, 24, 24) and small.min() >= 0 and small.max() <= 1
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)))
    assert (small[0, 1, :11] > 0.99).all() and (small[0, 1, 13:] < 0.01).all()
    assert hw.shrink(x, 32) is x


# pictures that are spoilt, and weights half-way

def spoilt(hw, x, share, seed=0, **options):
    return hw.spoil(x, share, torch.Generator().manual_seed(seed), **options)


def test_spoil_changes_the_share_asked_for_and_nothing_else(hw):
    x = torch.rand(1000, 3, 16, 16)
    before = x.clone()
    for share in (0, 0.3, 1):
        changed = (spoilt(hw, x, share) != x).flatten(1).any(1).double().mean().item()
        assert changed == pytest.approx(share, abs=0.05)
    assert torch.equal(x, before)
    assert torch.equal(spoilt(hw, x, 0.5), spoilt(hw, x, 0.5))
    assert not torch.equal(spoilt(hw, x, 0.5), spoilt(hw, x, 0.5, seed=1))
    for n in (1, 2):  # none may be noisy, or none smeared
        assert all(spoilt(hw, x[:n], 0.5, seed=seed).shape == (n, 3, 16, 16) for seed in range(20))
    with pytest.raises(ValueError, match=r"share is 1\.5; it must be 0 to 1"):
        spoilt(hw, x, 1.5)


def test_spoil_adds_noise_to_half_and_smears_half(hw):
    grey = torch.full((1000, 3, 16, 16), 0.5)  # smearing does not change it
    out = spoilt(hw, grey, 1)
    noise = (out - grey)[((out - grey).abs() > 1e-5).flatten(1).any(1)]
    assert 0.45 < len(noise) / 1000 < 0.55
    assert out.min() >= 0 and out.max() <= 1 and noise.mean().abs() < 0.002
    few = (noise.abs() < 1e-5).flatten(1).double().mean(1) > 0.5
    assert 0.4 < few.double().mean() < 0.6
    assert 0.08 < noise[~few].abs().amax() <= 0.2 < noise[few].abs().amax()
    assert torch.equal(spoilt(hw, grey, 1, most=0).round(decimals=4), grey)


def test_smearing_averages_each_channel_with_its_neighbours(hw):
    x = torch.zeros(300, 3, 17, 17)
    x[:, 1, 5, 8] = 1                                    # not in the middle, so that a flip would show
    out = spoilt(hw, x, 1, most=0)
    assert not out[:, [0, 2]].any()
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.ones(300))
    assert out.min() >= 0 and not out[:, 1, :3].any() and not out[:, 1, 8:].any()
    smeared = out[out[:, 1, 5, 8] < 0.99, 1, 5, 8]
    assert 0.4 < len(smeared) / 300 < 0.6 and smeared.unique().numel() == len(smeared)


@pytest.mark.parametrize("share, times", [(0.0, 0), (0.5, 3 * tiny.STEPS)])
def test_training_spoils_the_share_it_is_told(hw, tmp_path, monkeypatch, share, times):
    seen = []
    whole_spoil = hw.spoil
    monkeypatch.setattr(hw, "spoil", lambda x, s, generator: seen.append(s) or whole_spoil(x, s, generator))
    tiny.train(hw, tmp_path, tiny.hyperparameters(hw, spoilt=share))
    assert seen == [share] * times


def test_between_goes_the_share_of_the_way(hw):
    one, other = (hw.myViT(**tiny.MODEL) for _ in range(2))
    with torch.no_grad():
        other(torch.rand(8, 3, 32, 32))  # moves BatchNorm's statistics
    before = [t.clone() for t in one.state_dict().values()]
    for share in (0, 0.25, 1):
        between = hw.between(one, other, share).state_dict()
        for name, value in between.items():
            a, b = one.state_dict()[name], other.state_dict()[name]
            torch.testing.assert_close(value, a + share * (b - a) if value.is_floating_point() else a)
    assert all(map(torch.equal, one.state_dict().values(), before))


def test_trained_on_leaves_the_model_alone_and_starts_from_it(hw, sample, tmp_path):
    data = tuple(map(torch.from_numpy, sample[:2]))
    models = [hw.myViT(**tiny.MODEL) for _ in range(2)]
    before = [t.clone() for t in models[0].state_dict().values()]
    still = tiny.hyperparameters(hw, epochs=1, muon_lr=0.0, adamw_lr=0.0)
    for model in models:
        after, _ = hw.trained_on(model, data, data, still, folder=tmp_path, device=torch.device("cpu"))
        torch.testing.assert_close(dict(after.named_parameters()), dict(model.named_parameters()))
    assert len(checkpoints(tmp_path)) == 2  # none takes the other's
    assert all(map(torch.equal, models[0].state_dict().values(), before))


# pictures in which a part of another is pasted

def test_what_is_pasted_is_one_rectangle_of_another_picture(hw):
    x, labels = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 12), 10 + torch.arange(6)
    generator, parts = torch.Generator().manual_seed(0), []
    for _ in range(100):
        pasted, others, part = hw.paste(x, labels, generator)
        parts.append(part)
        assert sorted(others) == sorted(labels)
        for i, (picture, other) in enumerate(zip(pasted, others - 10)):
            inside = picture == other
            assert ((picture == i) | inside).all()
            assert torch.equal(inside[0], inside[1]) and torch.equal(inside[0], inside[2])
            if other != i:
                assert inside.double().mean().item() == pytest.approx(part)
                rows, columns = inside[0].any(1), inside[0].any(0)
                assert inside[0].sum() == rows.sum() * columns.sum()
                assert max(cells.int().diff().abs().sum() for cells in (rows, columns)) <= 2  # without a gap
    assert min(parts) < 0.05 and max(parts) > 0.7
    assert torch.equal(x[:, 0, 0, 0], torch.arange(6.0))      # what was handed in stays as it was
    with pytest.raises(ValueError, match="labels has 5 entries; it must have one for each of the 6 pictures"):
        hw.paste(x, labels[:5], generator)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_that_share_of_the_batches_is_pasted_but_for_the_last_epochs(hw, tmp_path, monkeypatch, share):
    def paste(x, labels, generator):
        calls.append(len(epochs))
        assert x.shape[2:] == (32, 32)                       # before it is shrunk
        return whole_paste(x, labels, generator)

    def train_epoch(*arguments):
        epochs.append(arguments)
        return whole_epoch(*arguments)

    calls, epochs, whole_paste, whole_epoch = [], [], hw.paste, hw.train_epoch
    monkeypatch.setattr(hw, "paste", paste)
    monkeypatch.setattr(hw, "train_epoch", train_epoch)
    tiny.train(hw, tmp_path, tiny.hyperparameters(hw, epochs=8, pasted=share, plain=0.3, sides=(16,)))
    assert len(epochs) == 8 and all(epoch <= 5 for epoch in calls)
    assert abs(len(calls) - share * 5 * tiny.STEPS) <= (6 if share == 0.5 else 0)


def test_a_pasted_picture_counts_for_both_labels_by_area(hw, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(hw, "paste", lambda x, labels, generator: (x, torch.full_like(labels, 3), 0.75))
    model, _ = tiny.train(hw, tmp_path, tiny.hyperparameters(hw, epochs=20, adamw_lr=0.02, pasted=1.0, plain=0.0))
    shares = hw.predict(model, torch.from_numpy(sample[0])).softmax(dim=1).mean(dim=0)
    assert shares[3].item() == pytest.approx(0.75 + 0.25 / 10, abs=0.06)


# evaluation

def test_predict_is_in_eval_mode_and_restores_the_mode(hw, sample):
    model, images = hw.myViT(**tiny.MODEL), torch.from_numpy(sample[2])
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))  # moves BatchNorm's averages away from where they start
    logits = hw.predict(model, images, batch_size=7)
    assert model.training and not logits.requires_grad
    torch.testing.assert_close(logits, hw.predict(model, images))
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(hw.to_input(images, torch.device("cpu"))))
    hw.predict(model, images)
    assert not model.training


def test_accuracy_is_in_per_cent(hw):
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1], [0, 1]])
    assert hw.accuracy(logits, torch.tensor([1, 0, 0, 1], dtype=torch.uint8)) == 75
