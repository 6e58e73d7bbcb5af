"""Which checkpoints of a run are the best, and whether it has come to its end.

What makes a checkpoint whole is in `intact`; here no file is summed, as this is asked after each save.
"""

import json
import math
from pathlib import Path
from typing import Any

from chexpert_hf.training.durable.intact import numbered_checkpoints, step_of

SCORE = "eval_mean_auroc"
"""The entry of the Trainer's log by which checkpoints are ranked."""


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have a readable state, oldest first."""
    return [path for path in numbered_checkpoints(folder) if state_of(path) is not None]


def best_checkpoints(folder: Path, count: int) -> list[Path]:
    """The checkpoints with the highest validation score, best first; those without a score come last."""
    checkpoints = checkpoints_by_step(folder)
    scores: dict[int, float] = {}
    for checkpoint in checkpoints:
        history = (state_of(checkpoint) or {}).get("log_history", [])
        scores |= {entry["step"]: entry[SCORE] for entry in history if SCORE in entry}
    return sorted(checkpoints, key=lambda path: _rank(scores.get(step_of(path))), reverse=True)[:count]


def _rank(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's state in a checkpoint; None if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def is_finished(checkpoint: Path) -> bool:
    """Whether the run of a checkpoint has come to its last step."""
    state = state_of(checkpoint) or {}
    return state.get("global_step", 0) >= state.get("max_steps", math.inf)
