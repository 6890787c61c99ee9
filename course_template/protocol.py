"""Train Parts 5 to 7 inside the course's own template, whose other parts are locked.

    python course_template/protocol.py [--dim 96 --heads 3 --head-dim 16 --mlp-dim 104] [--seed 0] [--epochs 10]
                                       [--without CAUSE ...] [--report] [--note TEXT]

The template: patches of 4 pixels through LayerNorm and Linear, a class token and a position embedding drawn from
N(0, 1), `myTransformer(dim, heads, dim_head, mlp_dim)`, the class token's row into LayerNorm and Linear; batches of 16,
Adam at 3e-4, ten epochs, no augmentation, the whole module saved by torch.save. Trains on 45,000 images and validates
on the other 5,000; with --report trains on all 50,000 and scores on the test images, once, in the end. Adds a row to
course_template/results.csv.

--without leaves out one or more of what parts_5_to_7.py does about the template: mean (the subtracted position
pattern), picture (the finer grid: only blocks on 8x8 then, two more of them), hiding (of tokens in training), scale
(the smaller initial weights), orthogonal (the gradient hook), average (of the weights).
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from einops import repeat
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from run import load_definitions  # noqa: E402

COLUMNS = ["arguments", "without", "seed", "epochs", "images", "minutes", "parameters", "pt_bytes", "validation",
           "test", "by_epoch", "note"]
CAUSES = ("mean", "picture", "hiding", "scale", "orthogonal", "average")
hw = load_definitions(name="__main__", DATA_DIR=str(HERE.parent / "data"))  # where a student's notebook has it, too
exec(compile((HERE / "parts_5_to_7.py").read_text(encoding="utf-8"), "parts_5_to_7.py", "exec"), hw.__dict__)


class myViT(nn.Module):
    """The template's Part 8: images (b, 3, 32, 32) in [0, 1] -> logits (b, 10)."""

    def __init__(self, dim, heads, head_dim, mlp_dim, patch_size=4, tokens=64, classes=10):
        super().__init__()
        self.tokenization = hw.myTokenization(dim, patch_size, 3)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.transformer = hw.myTransformer(dim, heads, head_dim, mlp_dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images):
        tokens = self.tokenization(images)                                          # (b, 64, dim)
        class_token = repeat(self.class_token, "1 1 d -> b 1 d", b=len(tokens))
        x = torch.cat([class_token, tokens], dim=1) + self.position                 # (b, 65, dim)
        return self.head(self.transformer(x)[:, 0])                                 # (b, 10)


class Centring(hw.myRetokenization):
    """What is left of it without the picture: (b, 65, dim) -> (b, 64, dim)."""

    def __init__(self, dim, patch_size):
        super().__init__(dim, patch_size)
        del self.to_picture, self.stem, self.blocks, self.to_tokens

    def forward(self, x):
        return self.hide(self.centred(x[:, 1:]))


hw.myViT, hw.Centring = myViT, Centring  # under their own names, so that torch.save finds them


def leave_out(cause: str, model: nn.Module, arguments: dict) -> None:
    """Undo one thing that myTransformer does about the template, before the training."""
    if cause == "mean":
        hw.myRetokenization.centred = lambda self, x: x
    elif cause == "picture":
        model.transformer = hw.myTransformer(*arguments.values(), depth=5)
        model.transformer.retokenize = Centring(arguments["dim"], 4)
    elif cause == "hiding":
        hw.myRetokenization.hide = lambda self, x: x
    elif cause == "scale":
        with torch.no_grad():
            for weight in (p for p in model.transformer.parameters() if p.ndim > 1):
                weight /= 0.6
    elif cause == "orthogonal":
        hw.orthogonal_gradient = lambda mean: lambda gradient: gradient
    else:
        hw.mySelfAveraging.exchange = lambda self: None


def train(model, images, labels, epochs, score):
    """The template's Parts 10 and 11; `score` is called after each epoch with its number and mean loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(images)).split(16):
            loss = F.cross_entropy(model(hw.to_input(images[batch].to(hw.DEVICE))), labels[batch].to(hw.DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        score(epoch, total / len(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dim", 96), ("heads", 3), ("head-dim", 16), ("mlp-dim", 104)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--without", nargs="*", choices=CAUSES, default=[])
    parser.add_argument("--report", action="store_true", help="train on all 50,000 images, score on the test images")
    parser.add_argument("--note", default="")
    a = parser.parse_args()

    (images, labels, test_images, test_labels), _ = hw.load_dataset("CIFAR10")
    kept, held = hw.split_validation(labels, 0 if a.report else 5000)
    arguments = dict(dim=a.dim, heads=a.heads, head_dim=a.head_dim, mlp_dim=a.mlp_dim)
    torch.manual_seed(a.seed)
    model = myViT(**arguments)
    for cause in sorted(a.without, key=CAUSES.index):
        leave_out(cause, model, arguments)
    model.to(hw.DEVICE)
    start, by_epoch = time.perf_counter(), []

    def score(epoch, loss):
        text = ""
        if not a.report:
            by_epoch.append(round(hw.accuracy(hw.predict(model, images[held]), labels[held]), 2))
            text = f"  validation {by_epoch[-1]:.2f} %"
        print(f"epoch {epoch}  loss {loss:.4f}{text}  {(time.perf_counter() - start) / 60:.1f} min", flush=True)

    train(model, images[kept], labels[kept], a.epochs, score)
    minutes = (time.perf_counter() - start) / 60
    with tempfile.TemporaryDirectory() as scratch:
        pt = Path(scratch, "StudentID_submission.pt")
        torch.save(model, pt)  # as the template does, in train mode
        row = dict(
            arguments=json.dumps(arguments), without=" ".join(a.without), seed=a.seed, epochs=a.epochs,
            images=len(kept), minutes=round(minutes, 1),
            parameters=sum(p.numel() for p in model.parameters()),
            pt_bytes=pt.stat().st_size, validation=by_epoch[-1] if by_epoch else "",
            test="", by_epoch=" ".join(map(str, by_epoch)), note=a.note)
        if a.report:
            saved = torch.load(pt, weights_only=False)
            logits = hw.predict(saved, test_images)
            row["test"] = round(hw.accuracy(logits, test_labels), 2)
            if not torch.equal(logits.argmax(dim=1), hw.predict(model, test_images).argmax(dim=1)):
                raise RuntimeError("the saved model predicts other classes than the trained one")
    print(row)
    with (HERE / "results.csv").open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)


if __name__ == "__main__":
    main()
