"""Verification of checkpoints, and one-line errors for those that cannot be written or read."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.training.durable.manifest import fault_of, read_manifest, to_disk

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""The errors of writing a checkpoint; torch.save raises a RuntimeError on a full disk."""

_READ_ERRORS = (*WRITE_ERRORS, ValueError, LookupError, TypeError, AttributeError, EOFError)
_PROBE_BYTES = 1 << 20


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or cannot be trusted."""


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` in a folder, oldest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    return sorted((path for path in folder.glob("*") if pattern.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def fault_of_checkpoint(checkpoint: Path) -> str | None:
    """The fault of a checkpoint that cannot be trusted, in a few words; None if it is as it was written."""
    if fault := fault_of(checkpoint):
        return fault
    step = (read_manifest(checkpoint) or {}).get("step")
    return None if step == step_of(checkpoint) else f"it is that of step {step} under another name"


def expect_intact(checkpoint: Path) -> None:
    """Raises CheckpointError if a checkpoint is not as it was written."""
    if fault := fault_of_checkpoint(checkpoint):
        raise CheckpointError(f"{checkpoint} cannot be used: {fault}. Put a copy in its place, or train again.")


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Turns any error of loading a checkpoint into a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: it holds a pickle of more than plain values.") from error
    except _READ_ERRORS as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: {first_line(error)}") from error


def cannot_write(checkpoint: Path, unfinished: Path, error: BaseException) -> str:
    """One line about a checkpoint that could not be written to `unfinished`, which is still there."""
    intact = (path for path in reversed(numbered_checkpoints(checkpoint.parent)) if not fault_of_checkpoint(path))
    newest = next(intact, None)
    rest = f"{newest.name} is intact: put this right and resume" if newest else "there is none before it"
    return f"{checkpoint} could not be written: {_why(unfinished, error)}; {rest}."


def _why(folder: Path, error: BaseException) -> str:
    """The reason of a failed write; torch.save does not say it ("unexpected pos 24128 vs 24020"): try once more."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        (folder / "probe").write_bytes(bytes(_PROBE_BYTES))
        to_disk(folder / "probe")
    except OSError as probe:
        return str(probe.strerror)
    return first_line(error)
