"""Which checkpoints of a run can be trusted.

The Trainer writes a checkpoint file by file in place, `trainer_state.json` last: a folder without a readable one was
cut short.
"""

import json
import math
from pathlib import Path
from typing import Any

SCORE = "eval_mean_auroc"
"""The entry of the Trainer's log by which checkpoints are ranked."""


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first; the Trainer writes `trainer_state.json` last."""
    found = [path for path in folder.glob("checkpoint-*") if state_of(path) is not None]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def best_checkpoints(folder: Path, count: int) -> list[Path]:
    """The complete checkpoints with the highest validation score, best first; those without a score come last."""
    checkpoints = checkpoints_by_step(folder)
    scores: dict[int, float] = {}
    for checkpoint in checkpoints:
        history = (state_of(checkpoint) or {}).get("log_history", [])
        scores |= {entry["step"]: entry[SCORE] for entry in history if SCORE in entry}
    return sorted(checkpoints, key=lambda path: _rank(scores.get(step_of(path))), reverse=True)[:count]


def _rank(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


def newest_complete_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from; None if there is no complete one."""
    checkpoints = checkpoints_by_step(folder)
    return checkpoints[-1] if checkpoints else None


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's state in a checkpoint; None if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return state if isinstance(state, dict) else None


def is_finished(checkpoint: Path) -> bool:
    """Whether the run of a complete checkpoint has come to its last step."""
    state = state_of(checkpoint) or {}
    return state.get("global_step", 0) >= state.get("max_steps", math.inf)
