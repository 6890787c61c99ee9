"""train.py DATASET [name=value of Hyperparameters] — the notebook's training with the fused kernels."""

import ast
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
os.chdir(Path(__file__).parents[2])
import torch

import run

dataset = sys.argv[1]
hw = run.load_definitions()
import kernels as fast

if os.environ.get("FAST", "1") == "1":
    fast.install(hw)
hw.fastest_precision = lambda *_: torch.bfloat16
settings = {k: ast.literal_eval(v) for k, v in (a.split("=") for a in sys.argv[2:])}
epochs = settings.pop("epochs", hw.Hyperparameters.epochs)
mirror = dataset not in ("SVHN", "GTSRB")
(train_images, train_labels, *_), classes = hw.load_dataset(dataset, "data", hw.DATA_SHA256)
kept, held = hw.split_validation(train_labels, 0, 0)
train_set = train_images[kept], train_labels[kept]
torch.manual_seed(0)
h = hw.Hyperparameters(mirror=mirror, epochs=round(epochs * min(50_000 / len(train_images), 5)), **settings)
colours = (
    {}
    if dataset == "CIFAR10"
    else {
        name: tuple(
            max(round(v, 4), 0.01) for v in getattr(train_set[0][:5000].float() / 255, name)((0, 1, 2)).tolist()
        )
        for name in ("mean", "std")
    }
)
net = hw.myViT(len(classes), both_views=h.mirror, **colours)
folder = hw.Path("checkpoints") / dataset
folder.mkdir(exist_ok=True)
print(hw.fingerprint(net, train_set, h, 0), h, flush=True)
hw.train(net, train_set, None, h, 0, folder, hw.DEVICE, False)
print("done", flush=True)
