"""Draw accuracy against parameters, this network and published ones: benchmarks/accuracy_parameters.png, for README.

    python benchmarks/accuracy_parameters.py

Our figures are read from the executed notebook. Those of others are as their authors give them.
"""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from run import load_definitions  # noqa: E402

PUBLISHED = [  # (name, parameters, test accuracy in per cent, epochs, kind)
    ("CCT-2/3x2", 284e3, 89.17, 200, "Transformer"),
    ("CCT-4/3x2", 482e3, 91.45, 200, "Transformer"),
    ("CVT-6/4", 3.2e6, 92.58, 200, "Transformer"),
    ("ViT-Lite-6/4", 3.2e6, 90.94, 200, "Transformer"),
    ("CCT-7/3x1", 3.8e6, 94.78, 200, "Transformer"),
    ("ResNet-20", 270e3, 92.6, 200, "convolutional"),
    ("DenseNet-BC-40-12", 176e3, 93.57, None, "convolutional"),
    ("PreAct-ResNet-20, dual cutout", 270e3, 94.45, 400, "convolutional"),
    ("Tiniest", 97.5e3, 94.4, 200, "convolutional"),
]
LABELS = {"DenseNet-BC-40-12": (-50, -14)}  # where there is no room to the right, in points


def ours() -> tuple[float, float, int]:
    """(parameters, test accuracy) that the notebook printed, and how many epochs it trained."""
    notebook = nbformat.read(ROOT / "DL_HW3_StudentID.ipynb", as_version=4)
    text = "\n".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    numbers = re.search(r"([\d,]+) numbers x 4", text).group(1).replace(",", "")
    hw = load_definitions()
    epochs = hw.ON_ALL["epochs"] + hw.HARDENING["epochs"] + (hw.BITS < 5) * hw.FINE_TUNING["epochs"]
    return float(numbers), float(re.search(r"test accuracy ([\d.]+) %", text).group(1)), epochs


def main() -> None:
    figure, axis = plt.subplots(figsize=(8, 4.2), dpi=100)
    for kind, marker, colour in (("convolutional", "s", "#E69F00"), ("Transformer", "o", "#0072B2")):
        points = [p for p in PUBLISHED if p[4] == kind]
        axis.plot([p[1] for p in points], [p[2] for p in points], marker, color=colour, label=kind)
    for name, parameters, right, epochs, _ in PUBLISHED:
        axis.annotate(f"{name}" + (f" ({epochs})" if epochs else ""), (parameters, right), LABELS.get(name, (6, -3)),
                      fontsize=8, textcoords="offset points")
    parameters, right, epochs = ours()
    axis.plot(parameters, right, "*", ms=18, color="#D55E00", label="this notebook")
    axis.annotate(f"this notebook ({epochs})", (parameters, right), (10, -12), fontsize=9, weight="bold",
                  textcoords="offset points")
    axis.axvline(250e3, ls=":", color="grey")
    axis.text(243e3, 88.6, "1 MB as float32", rotation=90, ha="right", va="bottom", fontsize=8, color="grey")
    axis.set(xscale="log", xlabel="parameters", ylabel="CIFAR-10 test accuracy, % (epochs of training)",
             xlim=(80e3, 9e6), ylim=(88.5, 95.5))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(ROOT / "benchmarks" / "accuracy_parameters.png", bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
