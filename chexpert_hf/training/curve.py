"""The loss and the validation AUROC of a run as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from chexpert_hf.training.checkpoints import SCORE

# Okabe and Ito's colours, which are told apart with any colour vision.
_BLUE, _ORANGE = "#0072B2", "#D55E00"


def plot_curve(history: Sequence[dict[str, Any]], path: Path, best_step: int) -> None:
    """Draws the Trainer's log history as a PNG, with the chosen step marked."""
    losses, aurocs = ([(entry["step"], entry[name]) for entry in history if name in entry] for name in ("loss", SCORE))
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    if losses:
        left.plot(*zip(*losses, strict=True), color=_BLUE, linewidth=1.5)
    if aurocs:
        right.plot(*zip(*aurocs, strict=True), color=_ORANGE, linewidth=1.5, marker="o", markersize=4)
    left.set_xlabel("Optimizer step")
    left.set_ylabel("Training loss", color=_BLUE)
    left.set_ylim(bottom=0)
    right.set_ylabel("Mean AUROC on the validation split", color=_ORANGE)
    right.set_ylim(min([0.5, *(value for _, value in aurocs)]), 1)
    left.axvline(best_step, color="0.6", linewidth=1, linestyle=":")
    left.annotate("chosen", (best_step, 0.02), xycoords=("data", "axes fraction"), ha="right", color="0.35", fontsize=9)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    figure.savefig(path)
