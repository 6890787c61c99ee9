"""Milliseconds of one training step, with and without what the notebook does to speed it up on a CPU.

    python benchmarks/step_time.py

Each row runs in a process of its own: forward and
backward pass, then both optimizers, on a batch of 128.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {  # name: what differs
    "as in the notebook, 32 x 32 pixels": dict(),
    "24 x 24 pixels": dict(side=24),
    "20 x 20 pixels": dict(side=20),
    "gradients in any order in memory": dict(place_by_place=False),
    "malloc as it comes": dict(keep=False),
    "torch.optim.Muon": dict(optimizer="torch.optim.Muon"),
    "float32": dict(bfloat16=False),
    "bfloat16 autocast": dict(bfloat16=True),
}


def measure(side=32, place_by_place=True, keep=True, optimizer="Muon", bfloat16=None, steps=25) -> float:
    sys.path.insert(0, str(ROOT))
    from run import load_definitions

    hw = load_definitions()
    torch, h = hw.torch, hw.Hyperparameters()
    if keep:
        hw.keep_freed_memory()
    if not place_by_place:
        hw.place_by_place = lambda gradient: gradient
    torch.manual_seed(0)
    if bfloat16 is None:
        bfloat16 = hw.bfloat16_pays(torch.device("cpu"))
    model = hw.myViT().to(memory_format=torch.channels_last)
    optimizers = hw.make_optimizers(model, h)
    if optimizer == "torch.optim.Muon":
        optimizers[0] = torch.optim.Muon([p for p in model.stages.parameters() if p.ndim == 2], lr=h.muon_lr)
    x = hw.to_input(torch.randint(0, 256, (128, side, side, 3), dtype=torch.uint8), torch.device("cpu"))
    y = torch.randint(0, 10, (128,))
    seconds = []
    for _ in range(3 * steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = hw.F.cross_entropy(model(x).float(), y)
        for o in optimizers:
            o.zero_grad()
        loss.backward()
        for o in optimizers:
            o.step()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 60:
            break
    return 1000 * statistics.median(seconds[-steps:])  # the first steps touch their memory for the first time


if __name__ == "__main__":
    if sys.argv[1:]:
        print(measure(**VARIANTS[sys.argv[1]]))
    else:
        print(f"{'variant':36} {'ms a step':>10}")
        for name in VARIANTS:
            command = [sys.executable, __file__, name]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{name:36} {float(out.stdout):10.0f}", flush=True)
