"""Lists, ranks and plots the checkpoints of a run. `durable.intact` checks their files for damage."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from chexpert_hf.evaluation.plots import COLORS
from chexpert_hf.training.durable.intact import numbered_checkpoints, step_of

SCORE = "eval_mean_auroc"
"""Key of the mean validation AUROC in the Trainer's log; checkpoints are ranked by it."""


def checkpoints_by_step(folder: Path) -> list[Path]:
    """Return the folders `checkpoint-N` that have a readable `trainer_state.json`, by ascending N."""
    return [path for path in numbered_checkpoints(folder) if _state_of(path)]


def best_checkpoints(folder: Path, count: int) -> list[Path]:
    """Return up to `count` checkpoints by descending validation AUROC; checkpoints without an AUROC come last."""
    checkpoints = checkpoints_by_step(folder)
    history = [entry for path in checkpoints for entry in _state_of(path).get("log_history", ())]
    scores = {entry["step"]: entry[SCORE] for entry in history if not math.isnan(entry.get(SCORE, math.nan))}
    return sorted(checkpoints, key=lambda path: scores.get(step_of(path), -math.inf), reverse=True)[:count]


def is_finished(checkpoint: Path) -> bool:
    """Return whether a checkpoint is of the last step of its run, as its `trainer_state.json` says."""
    state = _state_of(checkpoint)
    return state.get("global_step", 0) >= state.get("max_steps", math.inf)


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint's `trainer_state.json`; empty if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def plot_curve(history: Sequence[dict[str, Any]], path: Path, best_step: int) -> None:
    """Plot loss and validation AUROC from the Trainer's `log_history` as a PNG, with `best_step` marked as chosen."""
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
