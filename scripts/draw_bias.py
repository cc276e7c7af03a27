"""Draw docs/label_bias.png: the accuracy of each class of `emoji` by its pre-training prior, before and after GLA.

Usage: python scripts/draw_bias.py OUTPUT, where OUTPUT has the runs of `bash scripts/run_fewshot.sh emoji 16`.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import unskew
from unskew.micro import downstream

PAGE = Path(__file__).resolve().parent.parent / "docs" / "label_bias.png"


def class_accuracies(output: str, trainer: str) -> np.ndarray:
    """Return the accuracy in percent [C] of each class, the mean over the seeds 1, 2 and 3."""
    found = []
    for seed in (1, 2, 3):
        predictions = unskew.load_run(f"{output}/emoji/{trainer}/micro-emoji_16shots/seed{seed}").predictions
        labels, hits = predictions["labels"], predictions["logits"].argmax(1) == predictions["labels"]
        found.append([100 * float(hits[labels == c].double().mean()) for c in range(int(labels.max()) + 1)])
    return np.mean(found, axis=0)


def draw(output: str, path: Path = PAGE) -> None:
    """Draw both methods' accuracies by class over the log prior, with a regression line each."""
    log_q = unskew.true_log_prior("micro-emoji", "emoji").numpy()
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    before, after = (class_accuracies(output, trainer) for trainer in ("ZeroshotCLIP", "GLA"))
    for values, name, colour in ((before, "zero-shot", "tab:red"), (after, "GLA, 16 shots", "tab:blue")):
        axis.scatter(log_q, values, color=colour, label=f"{name}: {values.mean():.1f} % in the mean", zorder=3)
        slope, start = np.polyfit(log_q, values, 1)
        axis.plot(log_q, slope * log_q + start, color=colour, linewidth=1)
    for x, y0, y1, name in zip(log_q, before, after, downstream.classnames("emoji"), strict=True):
        axis.annotate("", (x, y1), (x, y0), arrowprops={"arrowstyle": "-", "color": "lightgrey"})
        below = y1 < y0 + 1  # a class that did not gain has its name below the lower point
        place = {
            "xytext": (0, -13 if below else 6),
            "ha": "center" if below else "left",
            "rotation": 0 if below else 30,
        }
        axis.annotate(name, (x, min(y0, y1) if below else y1), textcoords="offset points", fontsize=7, **place)
    axis.set(xlabel="log prior of the class in the pre-training data", ylabel="accuracy (%)", ylim=(-14, 118))
    axis.legend(frameon=False, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(sys.argv[1])
