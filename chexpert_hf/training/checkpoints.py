"""The checkpoints of a run: ranked by validation score, and drawn as a curve. `durable.intact` verifies their files."""

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
"""The entry of the Trainer's log by which checkpoints are ranked."""


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have a readable state, oldest first."""
    return [path for path in numbered_checkpoints(folder) if _state_of(path)]


def best_checkpoints(folder: Path, count: int) -> list[Path]:
    """The checkpoints with the highest validation score, best first; those without a score come last."""
    checkpoints = checkpoints_by_step(folder)
    history = [entry for path in checkpoints for entry in _state_of(path).get("log_history", ())]
    scores = {entry["step"]: entry[SCORE] for entry in history if not math.isnan(entry.get(SCORE, math.nan))}
    return sorted(checkpoints, key=lambda path: scores.get(step_of(path), -math.inf), reverse=True)[:count]


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is at the last step of its run."""
    state = _state_of(checkpoint)
    return state.get("global_step", 0) >= state.get("max_steps", math.inf)


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint; empty if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def plot_curve(history: Sequence[dict[str, Any]], path: Path, best_step: int) -> None:
    """Draws loss and validation AUROC of the Trainer's log history as a PNG, with the chosen step marked."""
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
