"""What does a GPU give: does a resumed training end alike, and how long is a step?

    python benchmarks/on_gpu.py [NAME=VALUE ...]

Answer: README.md; rows in on_gpu.csv. A few minutes on a CUDA GPU; on a CPU, only with a tiny network. NAME=VALUE as in
ladder.py; the minutes are estimated for the recipe with these."""

import argparse
from functools import partial
from timeit import repeat
from unittest import mock

import torch
from harness import hw, load_images, log

from run import setting


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    a = parser.parse_args(argv)
    arguments = dict(a.settings)
    h = hw.Hyperparameters(**{n: arguments.pop(n) for n in vars(hw.Hyperparameters()) if n in arguments})
    model, copied = hw.myViT(**arguments), hw.copy.deepcopy
    some = [t[:20 * h.batch_size].to(hw.DEVICE) for t in load_images()[0]]
    best = hw.fastest_precision(model.to(hw.DEVICE, memory_format=torch.channels_last), *some, h)

    def found(how, measure, value, unit):
        log("on_gpu", question="on a GPU", network="ours", measure=measure, value=round(value, 2), unit=unit,
            differs=", ".join([how, *(f"{n}={v}" for n, v in a.settings)]))
        print(f"{how:35} {measure:45} {value:8.2f} {unit}", flush=True)

    with hw.tempfile.TemporaryDirectory() as folder, mock.patch.object(hw, "fastest_precision", lambda *_: best):
        recipe = some, None, hw.replace(h, epochs=2, top_codes=()), 0, folder  # rounded weights could hide a difference
        with mock.patch.object(hw.Path, "unlink", side_effect=EOFError), hw.contextlib.suppress(EOFError):
            hw.train(copied(model), *recipe)  # ends when write_file has its first state in place, and unlinks
        resumed, whole = (hw.train(copied(model), *recipe, retrain=True)[0].state_dict().values() for _ in range(2))
        found("stopped, resumed", "weights equal bit for bit", all(map(torch.equal, resumed, whole)), "of 1 training")
        dtypes = (torch.bfloat16, torch.float16, torch.float32)[0 if hw.DEVICE.type == "cuda" else 2:]
        for dtype in dtypes:
            ms, how = {}, f"train_epoch, {str(dtype)[6:]}"  # of a step, in a second epoch: the first one warms up
            for side in sorted(set(h.sides)):
                new, sided = copied(model), hw.replace(h, sides=(side,))
                arguments = new, copied(new), hw.make_optimizers(new, sided), *some, 1, sided, 0, dtype
                epoch = partial(hw.train_epoch, *arguments)
                ms[side] = 1000 * repeat(epoch, number=1, repeat=2)[1] / (len(some[0]) // h.batch_size)
                found(f"{how}, {side}x{side}", f"step of {h.batch_size} images", ms[side], "ms")
            minutes = sum(ms[hw.side_of(e, h)] for e in range(1, h.epochs + 1)) * 50_000 / h.batch_size / 60_000
            found(how, f"{h.epochs} epochs of 50,000 images, estimated", minutes, "min")


if __name__ == "__main__":
    main()
