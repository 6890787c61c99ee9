"""What does a GPU give: does a resumed training end alike, how long is a step, how good are trainings side by side?

    python benchmarks/on_gpu.py [--side-by-side 3] [--epochs 40] [NAME=VALUE ...]

Answer: README.md; rows in on_gpu.csv. A few minutes on a CUDA GPU; on a CPU, only with a tiny network. NAME=VALUE as in
ladder.py; --epochs is of the trainings side by side, epochs= of the recipe whose minutes are estimated."""

import argparse
from functools import partial
from itertools import product
from timeit import repeat
from unittest import mock

import torch
from harness import END, hw, load_images, log

from run import setting


class Trainer:
    """The notebook's training with a step as one CUDA graph: over 1,000 small kernels are slow to launch one by one.

    model, images (n, h, w, c) uint8 and labels (n): on one device; on a CPU nothing is captured. The last
    n % h.batch_size images of an epoch's order are left out. Raises ValueError if n is below h.batch_size."""

    def __init__(self, model, h, images, labels, seed=0, dtype=torch.float32):
        if len(images) < h.batch_size:
            raise ValueError(f"there are {len(images)} images; a batch has {h.batch_size}")
        self.model, self.h, self.images, self.labels, self.seed, self.dtype = model, h, images, labels, seed, dtype
        self.device, self.steps, self.phase, self.graph = images.device, len(images) // h.batch_size, None, None
        matrices = {id(p) for p in model.stages.parameters() if p.ndim == 2}  # Muon's; first in the flat tensor
        named = sorted(model.train().named_parameters(), key=lambda item: (id(item[1]) not in matrices, item[1].shape))
        self.shapes, self.sizes = {name: p.shape for name, p in named}, [p.numel() for _, p in named]
        self.alike = hw.Counter(p.shape for _, p in named if id(p) in matrices)
        self.flat = torch.cat([p.detach().flatten() for _, p in named]).requires_grad_()
        self.inner, self.rest = self.flat.detach().tensor_split([sum(s.numel() * n for s, n in self.alike.items())])
        self.momentum, self.mean, self.square = map(torch.zeros_like, (self.inner, self.rest, self.rest))
        self.running = {name: b for name, b in model.named_buffers() if "running" in name}
        self.values, total = [self.flat.detach(), *self.running.values()], h.epochs * self.steps
        self.averages = [t.clone() for t in self.values]
        self.table = torch.tensor([(hw.schedule(s, total, h.warmup), min(h.ema, (s + 1) / (s + 10)), 1 - 0.9 ** (s + 1),
                                    (1 - 0.999 ** (s + 1)) ** 0.5) for s in range(total)], device=self.device)
        self.sums, self.count = torch.zeros(2, device=self.device), torch.zeros_like(labels[:1])  # count: steps so far
        self.batches, self.mirrored = labels[:self.steps * h.batch_size].view(self.steps, -1).clone(), labels < 0

    def weights(self, flat):
        """{name: parameter} as views of the flat tensor."""
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), flat.split(self.sizes))}

    def step(self, side, mix, share):
        """Train on the batch that is next by self.count; nothing here waits for the device. mix: chance of CutMix."""
        h, batch = self.h, self.batches[self.count % self.steps][0]
        (rate, keep, bias1, bias2), y = self.table[self.count][0], self.labels[batch]
        x = hw.to_input(hw.augment(self.images[batch], self.mirrored[batch], None, h.shift, h.cutout))
        dice, places = torch.rand(4, device=self.device), (torch.arange(32, device=self.device) + 0.5) / 32
        rows, columns = (places - dice[:2, None]).abs() < dice[2].sqrt() / 2
        mask = rows[:, None] & columns & (dice[3] < mix)  # hw.cutmix, but decided on the device
        x, area = torch.where(mask, x.roll(1, dims=0), x), mask.float().mean()
        x = hw.corrupt(hw.shrink(x, side), share, None).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            z = torch.func.functional_call(self.model, self.weights(self.flat), x).float()
        loss = (1 - area) * hw.F.cross_entropy(z, y) + area * hw.F.cross_entropy(z, y.roll(1))  # x 1024 for float16
        inner, rest = (torch.autograd.grad(1024 * loss, self.flat)[0] / 1024).tensor_split([len(self.inner)])
        with torch.no_grad():
            look = inner.lerp(self.momentum.lerp_(inner, 1 - h.muon_momentum), h.muon_momentum)
            updates = [hw.orthogonalize(block.view(n, *s)).flatten() * max(1, s[0] / s[1]) ** 0.5 for block, (s, n) in
                       zip(look.split([s.numel() * n for s, n in self.alike.items()]), self.alike.items())]
            self.inner.mul_(1 - rate * h.muon_lr * h.muon_weight_decay).sub_(rate * h.muon_lr * torch.cat(updates))
            self.square.mul_(0.999).addcmul_(rest, rest, value=0.001)
            self.rest.sub_(rate * h.adamw_lr / bias1 * self.mean.lerp_(rest, 0.1) / (self.square.sqrt() / bias2 + 1e-8))
            torch._foreach_mul_(self.averages, keep)
            torch._foreach_add_(self.averages, torch._foreach_mul(self.values, 1 - keep))
            self.sums.add_(torch.stack([loss, 100 * (z.argmax(dim=1) == y).float().mean()]) / self.steps)
            self.count.add_(1)

    def epoch(self, epoch):
        """One pass, 1 to h.epochs, in hw.train_epoch's order and mirroring: [mean loss, training accuracy in %]."""
        h, late, dice, n = self.h, epoch / self.h.epochs, hw.random.Random(f"{self.seed} {epoch}"), len(self.images)
        each, generator = (torch.Generator(self.device).manual_seed(s) for s in (self.seed, dice.getrandbits(62)))
        self.mirrored.copy_(((torch.rand(n, generator=each, device=self.device) < 0.5) ^ bool(epoch % 2)) & h.mirror)
        self.batches.view(-1).copy_(torch.randperm(n, generator=generator, device=self.device)[:self.batches.numel()])
        self.count.fill_((epoch - 1) * self.steps)  # beyond the table, the device would stop
        self.sums.zero_()
        phase = hw.side_of(epoch, h), h.cutmix * (late <= h.cutmix_until), h.corrupt * (late > h.corrupt_from)
        left = iter(range(self.steps))
        if self.device.type == "cuda" and phase != self.phase:
            self.graph, self.phase, stream = None, phase, torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in zip(range(3), left):  # they train, and warm up what is captured
                    self.step(*phase)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # it waits for all streams first
                self.step(*phase)
        for _ in left:
            self.graph.replay() if self.graph else self.step(*phase)
        return self.sums.tolist()

    def averaged(self):
        """A new model of the running average, in eval mode."""
        model, (flat, *running) = hw.myViT(**self.model.arguments).to(self.device), self.averages
        model.load_state_dict(self.weights(flat) | dict(zip(self.running, running)), strict=False)
        return model.eval()


def train(seed, arguments, h, dtype, path) -> None:
    """Train with the Trainer on path/sets; path/<seed>: a row's columns, accuracies of one view and both."""
    train_set, (images, labels) = torch.load(f"{path}/sets", map_location=hw.DEVICE)
    torch.manual_seed(seed)
    start, trainer = hw.time.time(), Trainer(hw.myViT(**arguments).to(hw.DEVICE), h, *train_set, seed, dtype)
    for epoch in range(1, h.epochs + 1):
        print("seed {}: epoch {}, loss {:.4f}, {:.2f} %".format(seed, epoch, *trainer.epoch(epoch)), flush=True)
    minutes, model = round((hw.time.time() - start) / 60, 4), hw.recompute_statistics(trainer.averaged(), train_set[0])
    scores = [hw.accuracy(hw.predict(network, images), labels.cpu()) for network in (hw.single_view(model), model)]
    torch.save((dict(seed=seed, images=len(train_set[1]), epochs=h.epochs, minutes=minutes), scores), f"{path}/{seed}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", type=setting, metavar="NAME=VALUE")
    parser.add_argument("--side-by-side", type=int, default=3, metavar="N", help="trainings at once, seeds 0 to N - 1")
    parser.add_argument("--epochs", type=int, default=40)
    a = parser.parse_args(argv)
    arguments = dict(a.settings)
    h = hw.Hyperparameters(**{n: arguments.pop(n) for n in vars(hw.Hyperparameters()) if n in arguments})
    model, sets, copied = hw.myViT(**arguments), load_images()[:2], hw.copy.deepcopy
    some = [t[:20 * h.batch_size].to(hw.DEVICE) for t in sets[0]]
    best = hw.fastest_precision(model.to(hw.DEVICE, memory_format=torch.channels_last), *some, h)

    def found(how, measure, value, unit, **row):
        log("on_gpu", question="on a GPU", network="ours", measure=measure, value=round(value, 2), unit=unit,
            differs=", ".join([how, *(f"{n}={v}" for n, v in a.settings)]), **row)
        print(f"{how:35} {measure:45} {value:8.2f} {unit}", flush=True)

    with hw.tempfile.TemporaryDirectory() as folder, mock.patch.object(hw, "fastest_precision", lambda *_: best):
        recipe = some, None, hw.replace(h, epochs=2, top_codes=()), 0, folder  # rounded weights could hide a difference
        with mock.patch.object(hw.Path, "unlink", side_effect=EOFError), hw.contextlib.suppress(EOFError):
            hw.train(copied(model), *recipe)  # ends when write_file has its first state in place, and unlinks
        resumed, whole = (hw.train(copied(model), *recipe, retrain=True)[0].state_dict().values() for _ in range(2))
        found("stopped, resumed", "weights equal bit for bit", all(map(torch.equal, resumed, whole)), "of 1 training")
        dtypes = (torch.bfloat16, torch.float16, torch.float32)[0 if hw.DEVICE.type == "cuda" else 2:]
        for name, dtype in product(("train_epoch", "Trainer"), dtypes):
            ms, how = {}, f"{name}, {str(dtype)[6:]}"  # of a step, in a second epoch: the first one warms up
            for side in sorted(set(h.sides)):
                new, sided = copied(model), hw.replace(h, sides=(side,))
                call = (Trainer(new, sided, *some, 0, dtype).epoch, 1) if name == "Trainer" else (
                    hw.train_epoch, new, copied(new), hw.make_optimizers(new, sided), *some, 1, sided, 0, dtype)
                ms[side] = 1000 * repeat(partial(*call), number=1, repeat=2)[1] / (len(some[0]) // h.batch_size)
                found(f"{how}, {side}x{side}", f"step of {h.batch_size} images", ms[side], "ms")
            minutes = sum(ms[hw.side_of(e, h)] for e in range(1, h.epochs + 1)) * 50_000 / h.batch_size / 60_000
            found(how, f"{h.epochs} epochs of 50,000 images, estimated", minutes, "min")
        torch.save(sets, f"{folder}/sets")
        torch.multiprocessing.spawn(train, (arguments, hw.replace(h, epochs=a.epochs), best, folder), a.side_by_side)
        for seed in range(a.side_by_side):
            row, scores = torch.load(f"{folder}/{seed}")
            for what, score in zip((END, f"{END}, both views"), scores):
                found(f"Trainer, {str(best)[6:]}, {a.side_by_side} side by side", what, score, "%", **row)


if __name__ == "__main__":
    main()
