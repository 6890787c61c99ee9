"""Draw the figures of README.md from the CSVs: accuracy_parameters.png and peers.png. A few seconds.

peers.png has on the left the runs of eight epochs, on the right those of 15 minutes; the best of each network.
"""

import csv
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OURS = ("one view", "both views")
COLOURS = {"ours": "#D55E00", "ResNet-20": "#0072B2", "CCT-2/3x2": "#009E73", "template's ViT": "#E69F00",
           "Tiniest": "#CC79A7", "WRN-28-3 BSConv-S": "#56B4E9"}
PLACES = {"WRN-28-3 BSConv-S": (-100, -12), "Tiniest": (-20, 8), "CCT-6/3x1": (-40, 8), "ours, one view": (12, 0),
          "PreAct-ResNet-20, dual cutout": (6, -11)}  # of labels, in points


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
    figure, axis = plt.subplots(figsize=(8, 4.2), dpi=100)
    size, *_ = (float(r["value"]) for r in read("runs") if (r["question"], r["measure"]) == ("shipped", "parameters"))
    points = {}
    for row in read("published") + read("runs"):
        name, kind = row["network"], row["differs"].split(";")[0]
        if row["question"] == "shipped" and kind.removeprefix("6 bits, ") in OURS:
            name, kind = f"ours, {kind.removeprefix('6 bits, ')}", "this notebook"
        if row["question"] == "published" or kind == "this notebook":
            points.setdefault((name, row["epochs"], kind), {"parameters": size})[row["measure"]] = float(row["value"])
    for kind, marker, colour in (("convolutional", "s", "#E69F00"), ("Transformer", "o", "#0072B2"),
                                 ("this notebook", "*", "#D55E00")):
        mine = {key: (p["parameters"], p["test accuracy"]) for key, p in points.items() if key[2] == kind}
        axis.plot(*zip(*mine.values()), marker, ms=16 if marker == "*" else 6, color=colour, label=kind)
        for (name, epochs, _), point in mine.items():
            axis.annotate(name + (f" ({epochs})" if epochs else ""), point, PLACES.get(name, (9, -3)), fontsize=8,
                          textcoords="offset points", weight="bold" if marker == "*" else None)
    axis.axvline(250e3, ls=":", color="grey")
    axis.text(243e3, 88.6, "1 MB as float32", rotation=90, ha="right", va="bottom", fontsize=8, color="grey")
    axis.set(xscale="log", xlabel="parameters", ylabel="CIFAR-10 test accuracy, % (epochs of training)",
             xlim=(50e3, 9e6), ylim=(88.5, 95.7))
    axis.legend(loc="lower right")
    figure.savefig(HERE / "accuracy_parameters.png", bbox_inches="tight")


if __name__ == "__main__":
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
                         "savefig.facecolor": "white"})
    draw_peers(8, 15)
    draw_accuracy_parameters()
