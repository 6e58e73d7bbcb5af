"""Which checkpoints of a run can be trusted.

The Trainer writes a checkpoint file by file in place, `trainer_state.json` last: a folder without a readable one was
cut short.
"""

import json
from pathlib import Path
from typing import Any


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first; the Trainer writes `trainer_state.json` last."""
    found = [path for path in folder.glob("checkpoint-*") if state_of(path) is not None]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_complete_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from; None if there is no complete one."""
    checkpoints = checkpoints_by_step(folder)
    return checkpoints[-1] if checkpoints else None


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return state if isinstance(state, dict) else None


def is_finished(checkpoint: Path) -> bool:
    state = state_of(checkpoint) or {}
    return state["global_step"] >= state["max_steps"]
