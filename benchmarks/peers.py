"""Other small networks, ours and a coarser one, trained alike: held-out accuracy against epochs and against seconds.

    python benchmarks/peers.py [--epochs 8 | --seconds 900] [--only NAME ...] [--optimizers NAME ...] [--seed 0]

Whole pictures, none pasted into another. Same images, schedule and running average of weights, for each optimizer that
suits a network: SGD as ResNets are trained, AdamW as Transformers are, at the rates of their authors scaled to this
batch; the notebook's Muon with AdamW, at rates tuned for ours. CCT's dropout and stochastic depth are left out. With
--seconds each network trains for as many epochs as fit into that time (without evaluation). Only a run's last epoch is
a result: before it the rates are not annealed. Appends a row an epoch to benchmarks/peers.csv; leaves the weights in
checkpoints/ladder/peer-*.pt, where shift.py finds them.
"""

import argparse
import copy
import csv
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions  # noqa: E402

hw = load_definitions(DATA_DIR=str(ROOT / "data"))
COLUMNS = ["run", "network", "parameters", "optimizer", "rates", "seed", "budget", "epochs", "epoch", "seconds",
           "held_out"]


class Normalized(nn.Sequential):
    """A network on images in [0, 1], normalised as all are here."""

    def __init__(self, *layers):
        super().__init__(*layers)
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(hw.myViT(), name), persistent=False)

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


class EncoderLayer(nn.Module):
    """The plain pre-norm Transformer layer of ViT: no locality."""

    def __init__(self, dim, heads, mlp_dim):
        super().__init__()
        self.attention, self.ffn = hw.myMultiHeadAttention(dim, heads, dim // heads), hw.myFFN(dim, mlp_dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class CCTLayer(nn.Module):
    """CCT's own order: the residual stream itself is normalised before the GELU network."""

    def __init__(self, dim, heads, mlp_dim):
        super().__init__()
        self.attention = hw.myMultiHeadAttention(dim, heads, dim // heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.norm2(x + self.attention(self.norm1(x)))
        return x + self.mlp(x)


class CCT(nn.Module):
    """Compact Convolutional Transformer CCT-2/3x2 (Hassani et al. 2021): two pooled convolutions make 64 tokens."""

    def __init__(self, dim=128, layers=2, heads=2, classes=10):
        super().__init__()
        self.tokenizer = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(64, dim, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.position = nn.Parameter(0.2 * torch.randn(1, 64, dim))
        self.layers = nn.Sequential(*(CCTLayer(dim, heads, dim) for _ in range(layers)))
        self.norm, self.pool, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1), nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        x = rearrange(self.tokenizer(x), "b d h w -> b (h w) d") + self.position
        x = self.norm(self.layers(x))
        return self.head((self.pool(x).softmax(dim=1) * x).sum(dim=1))


class PlainViT(nn.Module):
    """The course template's network with plain Transformer layers: patches of 4 pixels, class token."""

    def __init__(self, dim=96, layers=3, heads=3, mlp_dim=192, classes=10):
        super().__init__()
        self.tokenization = hw.myTokenization(dim, 4, 3)
        self.class_token, self.position = (nn.Parameter(torch.randn(1, n, dim)) for n in (1, 65))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads, mlp_dim) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, x):
        x = torch.cat([self.class_token.expand(len(x), -1, -1), self.tokenization(x)], dim=1) + self.position
        return self.head(self.layers(x)[:, 0])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zero channels (option A of He et al. 2015)."""

    def __init__(self, before, after):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, 1 if before == after else 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.extra = after - before

    def forward(self, x):
        shortcut = x
        if self.extra:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(self.layers(x) + shortcut)


def resnet20():
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *(ResidualBlock(a, b) for a, b in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return network


def split(model):
    """(matrices between the first and the last layer, all other parameters)."""
    if isinstance(model, hw.myViT):
        inner = {id(p) for p in model.stages.parameters() if p.ndim == 2}
    else:
        inner = {id(p) for name, p in model.named_parameters()
                 if p.ndim == 2 and len(p) > 1 and "head" not in name and "tokenization" not in name}
    return [p for p in model.parameters() if id(p) in inner], [p for p in model.parameters() if id(p) not in inner]


PLAIN = dict(sides=(32,), pasted=0.0)
OPTIMIZERS = {  # name: (make, peak rates)
    "SGD": (lambda m: [torch.optim.SGD(m.parameters(), 0.2, 0.9, weight_decay=1e-4)], (0.2, 0)),
    "AdamW": (lambda m: [torch.optim.AdamW(m.parameters(), weight_decay=0.03)], (1e-3, 0)),
    "Muon": (lambda m: [hw.Muon(split(m)[0], 0.02), torch.optim.AdamW(split(m)[1], weight_decay=0)], (0.02, 2e-3)),
}
COARSE = dict(patch_size=2, merging="patch", dims=(64, 96), depths=(3, 3), heads=(0, 3), mlp_dims=(128, 174),
              norms=("layer", "layer"))
NETWORKS = {  # name: (make, optimizers that suit it)
    "ours": (hw.myViT, ["Muon", "AdamW"]),
    "coarse": (lambda: hw.myViT(**COARSE), ["Muon", "AdamW"]),
    "ResNet-20": (lambda: Normalized(resnet20()), ["SGD", "AdamW"]),
    "CCT-2/3x2": (lambda: Normalized(CCT()), ["AdamW", "Muon"]),
    "template-ViT": (PlainViT, ["AdamW", "Muon"]),
}


def train(make, optimizer, h, seed, train_set, held_out_set, seconds):
    """Yield (epochs, epoch, seconds so far, held-out accuracy in per cent, averaged model) after each epoch."""
    torch.manual_seed(seed)
    model = make().to(hw.DEVICE, memory_format=torch.channels_last)
    make_optimizer, (first, second) = OPTIMIZERS[optimizer]
    images, labels = train_set
    h, autocast = replace(h, muon_lr=first, adamw_lr=second), hw.bfloat16_pays(hw.DEVICE)
    if seconds:  # how many epochs fit: by the time of a short one
        probe = copy.deepcopy(model)
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            hw.train_epoch(probe, copy.deepcopy(probe), make_optimizer(probe), images[:5000], labels[:5000],
                           torch.zeros(5000, dtype=torch.bool), 1, replace(h, epochs=1), torch.Generator(), autocast)
        h = replace(h, epochs=max(1, round(seconds / ((time.perf_counter() - start) * len(images) / 5000))))
    generator = torch.Generator().manual_seed(seed)
    mirror = torch.rand(len(images), generator=generator) < 0.5
    averaged, optimizers, spent = copy.deepcopy(model).eval(), make_optimizer(model), 0.0
    for epoch in range(1, h.epochs + 1):
        start = time.perf_counter()
        hw.train_epoch(model, averaged, optimizers, images, labels, mirror, epoch, h, generator, autocast)
        spent += time.perf_counter() - start
        yield h.epochs, epoch, spent, hw.accuracy(hw.predict(averaged, held_out_set[0]), held_out_set[1]), averaged


@contextmanager
def appended(log: Path, columns: list[str]):
    """A writer that adds rows to a .csv, each written at once; the header, too, if the file is new."""
    new = not log.exists()
    with log.open("a", newline="", buffering=1) as file:
        rows = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            rows.writeheader()
        yield rows


def load(file: dict) -> nn.Module:
    """The network that main saved."""
    model = NETWORKS[file["network"]][0]()
    model.load_state_dict(file["weights"])
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="*", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    images, labels, _, _ = hw.load_cifar10()
    kept, held = hw.split_held_out(labels)
    hw.keep_freed_memory()
    h = hw.Hyperparameters(epochs=a.epochs, **PLAIN)
    with appended(ROOT / "benchmarks" / "peers.csv", COLUMNS) as rows:
        for name in a.only:
            make, optimizers = NETWORKS[name]
            numbers = sum(p.numel() for p in make().parameters())
            for optimizer in (o for o in optimizers if o in a.optimizers):
                print(f"\n{name}, {numbers:,} parameters, {optimizer}")
                run = time.strftime("%Y%m%dT%H%M%S")
                sets = ((images[i], labels[i]) for i in (kept, held))
                for epochs, epoch, seconds, held_out, model in train(make, optimizer, h, a.seed, *sets, a.seconds):
                    rows.writerow(dict(
                        run=run, network=name, parameters=numbers, optimizer=optimizer, rates=OPTIMIZERS[optimizer][1],
                        seed=a.seed, budget=a.seconds, epochs=epochs, epoch=epoch, seconds=round(seconds, 1),
                        held_out=round(held_out, 2)))
                    print(f"{epoch:3d} of {epochs}  {seconds:7.1f} s  {held_out:6.2f} %", flush=True)
                    hw.save_with_torch(
                        dict(network=name, weights={key: value.cpu() for key, value in model.state_dict().items()}),
                        ROOT / "checkpoints" / "ladder" / f"peer-{name.replace('/', '-')}-{optimizer}.pt")


if __name__ == "__main__":
    main()
