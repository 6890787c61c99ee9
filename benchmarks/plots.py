"""Draw the figures of README.md from the CSVs: accuracy_parameters.png and peers.png. A few seconds.

peers.png has on the left the runs of eight epochs, on the right those of 15 minutes; the best of each network.
"""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"ours": "#D55E00", "ResNet-20": "#0072B2", "CCT-2/3x2": "#009E73", "template's ViT": "#E69F00",
           "Tiniest": "#CC79A7", "WRN-28-3 BSConv-S": "#56B4E9"}
# where labels stand, in points
PLACES = {"WRN-28-3 BSConv-S": (-62, -14), "WRN-28-2 BSConv-S": (-50, -13), "Tiniest": (-24, 8),
          "CCT-6/3x1": (-40, 8), "ours": (12, 0), "PreAct-ResNet-20, dual cutout": (6, -11), "ResNet-20, EC2T": (-8, 8),
          "ResNet-20, APoT, 2 bits": (8, -10), "ResNet-20, APoT, 3 bits": (-50, 8), "ResNet-20, APoT, 4 bits": (8, -10)}


def read(file):
    with (HERE / f"{file}.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def runs(rows):
    """The rows of each training that was finished, under way and at its end, in order."""
    under_way, done = {}, []
    for row in rows:
        if row["measure"] in ("validation accuracy", "validation accuracy under way"):
            key = row["network"], row["differs"], row["seed"], row["commit"]
            under_way.setdefault(key, []).append(row)
            if row["measure"] == "validation accuracy":
                done.append(under_way.pop(key))
    return done


def best_runs(rows, wanted):
    """Of the runs whose last row is wanted, the one that ended best for each network, the best first."""
    found = sorted((run for run in runs(rows) if wanted(run[-1])), key=lambda run: float(run[-1]["value"]))
    return sorted({run[-1]["network"]: run for run in found}.values(), key=found.index, reverse=True)


def draw_peers(epochs, minutes):
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, dpi=100)
    wanted = [lambda end: end["epochs"] == str(epochs), lambda end: f"budget {minutes:g} minutes" in end["differs"]]
    for axis, x, number, is_wanted in zip(axes, ("epochs", "minutes"), (epochs, minutes), wanted):
        for run in best_runs([row for row in read("peers") if row["network"] in COLOURS], is_wanted):
            points = [[float(row[name]) for row in run] for name in (x, "value")]
            colour, optimizer = COLOURS[run[0]["network"]], run[0]["differs"].split(";")[0]
            axis.plot(*points, ".-", color=colour, label=f"{run[0]['network']}, {optimizer}")
            axis.plot(points[0][-1], points[1][-1], "*", ms=13, color=colour)
        axis.set(xlabel=x, title=f"{number:g} {x} each, {run[0]['processor'].split('EPYC')[-1].strip(' ,')}")
    axes[0].set(ylabel="validation accuracy, %")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.legend(*axis.get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8)
    figure.savefig(HERE / "peers.png")


def draw_accuracy_parameters():
    figure, (axis, stored) = plt.subplots(1, 2, figsize=(12, 4.4), dpi=100, sharey=True)
    shipped = {(r["measure"], r["differs"]): float(r["value"]) for r in read("runs") if r["question"] == "shipped"}
    size, kilobytes = shipped["parameters", ""], shipped["bytes of the .pt", ""] / 1000
    accuracy = shipped["test accuracy", "both views"]
    points = defaultdict(dict)
    for row in read("published"):
        points[row["network"], row["epochs"], row["differs"].split(";")[0]][row["measure"]] = float(row["value"])
    for kind, marker, colour in (("convolutional", "s", "#E69F00"), ("Transformer", "o", "#0072B2")):
        found = {key: (p["parameters"], p["test accuracy"]) for key, p in points.items() if key[2] == kind}
        axis.plot(*zip(*found.values()), marker, ms=6, color=colour, label=kind)
        for (name, epochs, _), point in found.items():
            label(axis, name + (f" ({epochs})" if epochs else ""), point)
    few = {key[0]: (p["kilobytes stored"], p["test accuracy"]) for key, p in points.items() if "kilobytes stored" in p}
    whole = [(4 * p["parameters"] / 1000, p["test accuracy"], key[0]) for key, p in points.items()
             if key[2] == "convolutional" and p["test accuracy"] > 93]
    stored.plot(*zip(*few.values()), "D", ms=6, color="#009E73", label="published with fewer bits")
    stored.plot(*list(zip(*whole))[:2], "s", ms=6, color="#E69F00", label="published, as float32")
    for name, point in [*few.items(), *((name, point) for *point, name in whole)]:
        label(stored, name, point)
    for part, x in ((axis, size), (stored, kilobytes)):
        part.plot(x, accuracy, "*", ms=16, color="#D55E00", label="this notebook")
        label(part, "ours", (x, accuracy), weight="bold")
        part.legend(loc="lower right")
    axis.axvline(250e3, ls=":", color="grey")
    axis.text(243e3, 88.6, "1 MB as float32", rotation=90, ha="right", va="bottom", fontsize=8, color="grey")
    axis.set(xscale="log", xlabel="parameters", ylabel="CIFAR-10 test accuracy, % (epochs of training)",
             xlim=(50e3, 9e6), ylim=(88.5, 95.7))
    stored.set(xscale="log", xlabel="kilobytes of the weights", xlim=(40, 2000))
    figure.savefig(HERE / "accuracy_parameters.png", bbox_inches="tight")


def label(axis, text, point, **how):
    axis.annotate(text, point, PLACES.get(text.split(" (")[0], (9, -3)), fontsize=8, textcoords="offset points", **how)


if __name__ == "__main__":
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
                         "savefig.facecolor": "white"})
    draw_peers(8, 15)
    draw_accuracy_parameters()
