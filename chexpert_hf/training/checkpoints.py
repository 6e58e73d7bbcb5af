"""Ranks the checkpoints of a run by their validation score; `durable.intact` verifies their files."""

import json
import math
from pathlib import Path
from typing import Any

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
    """Whether the run of a checkpoint has come to its last step."""
    state = _state_of(checkpoint)
    return state.get("global_step", 0) >= state.get("max_steps", math.inf)


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint; empty if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
