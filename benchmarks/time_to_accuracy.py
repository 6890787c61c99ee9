"""How long does training take until 57, 80 and 90 % of the validation images are right?

    python benchmarks/time_to_accuracy.py [--only 57 80 90] [--seeds 0 1 2] [--images N]

Answer: README.md, "Time to an accuracy"; rows in time_to_accuracy.csv. About an hour for all, on two cores of an AMD
EPYC of the fourth generation. Each target has a training of its own, whose rates have fallen to zero at its end.
Scoring is not counted.
"""

from statistics import median

from harness import SHORT, arguments, chosen, hw, load_images, train
from networks import NETWORKS

PLANS = {"57": dict(epochs=1, sides=(24,), ema=0.98),
         "80": dict(epochs=3, sides=(24, 24, 32), ema=0.99),
         "90": dict(epochs=12, sides=(24, 24, 32), ema=0.996)}


def main(argv=None) -> None:
    parser = arguments(__doc__, seeds=[0, 1, 2])
    a = parser.parse_args(argv)
    targets = chosen(parser, a.only, PLANS)
    train_set, validation_set, *_ = load_images(a.images)
    for target in targets:
        h = hw.Hyperparameters(**PLANS[target], **SHORT)
        differs = f"target {target} %; sides={h.sides}, ema={h.ema}"
        ends = [train("time_to_accuracy", "time to accuracy", "ours", differs, NETWORKS["ours"].make,
                      "Muon 0.02 + AdamW 0.002", h, seed, train_set, validation_set) for seed in a.seeds]
        print(f"{target} %: median {60 * median(minutes for _, minutes, _ in ends):.0f} s; reached by "
              f"{sum(right >= float(target) for right, *_ in ends)} of {len(ends)} runs", flush=True)


if __name__ == "__main__":
    main()
