"""The loss and the validation AUROC of a run as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from chexpert_hf.evaluation.plots import COLORS
from chexpert_hf.training.checkpoints import SCORE


def plot_curve(history: Sequence[dict[str, Any]], path: Path, best_step: int) -> None:
    """Draws the Trainer's log history as a PNG, with the chosen step marked."""
    table = pd.DataFrame(history).set_index("step").reindex(columns=["loss", SCORE])
    losses, aurocs = table["loss"].dropna(), table[SCORE].dropna()
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    left.plot(losses, color=COLORS[0], linewidth=1.5)
    right.plot(aurocs, color=COLORS[1], linewidth=1.5, marker="o", markersize=4)
    left.set(xlabel="Optimizer step", ylim=(0, None))
    left.set_ylabel("Training loss", color=COLORS[0])
    right.set_ylabel("Mean AUROC on the validation split", color=COLORS[1])
    right.set_ylim(min(0.5, aurocs.min()), 1)
    left.axvline(best_step, color="0.6", linewidth=1, linestyle=":")
    left.annotate("chosen", (best_step, 0.02), xycoords=("data", "axes fraction"), ha="right", color="0.35", fontsize=9)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    figure.savefig(path)
