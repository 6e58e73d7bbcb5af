"""A Hugging Face Trainer whose checkpoints survive kills, full disks, crashes and damaged files.

The stock Trainer (transformers 5.23) writes a checkpoint file by file into its final folder, resumes from the one with
the highest number, and loads damaged or incomplete files, some of them silently. Here a checkpoint is written into
another folder, flushed to the disk, sealed with a manifest and then renamed; a run resumes from the newest one that
matches its manifest. Nothing in this module knows about radiographs.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from chexpert_hf.training.durable.intact import (
    WRITE_ERRORS,
    CheckpointError,
    cannot_write,
    expect_intact,
    fault_of_checkpoint,
    numbered_checkpoints,
    read_manifest,
    reading,
    seal,
    step_of,
    to_disk,
)

# The Trainer neither uploads names that begin with "_" nor takes them for checkpoints.
UNFINISHED = "_unfinished"
SET_ASIDE = "_damaged-"

logger = logging.get_logger(__name__)


class DurableCheckpoints(Trainer):
    """A Trainer, or a mixin for another one: `class Mine(DurableCheckpoints, Seq2SeqTrainer)`.

    - A checkpoint is complete or does not exist. It holds a manifest with the SHA-256 of each file, the step, and
      torch's version and number of threads. It holds no `training_args.bin`, a pickle that nothing reads.
    - `train(resume_from_checkpoint=True)` resumes from the newest intact checkpoint, and logs which one that is and why
      newer ones were skipped. Without any checkpoint, it starts at step 0. A path given instead of True is verified.
    - A finished run is not trained further; the stock Trainer takes one more step if the last is inside an epoch.
    - If writing or reading fails, a CheckpointError says why in one line; after a failed write it also names the newest
      intact checkpoint.

    If there are several processes, all must see the same folder. Do not set `push_to_hub`, which still uploads
    `training_args.bin` with the token in it; push the finished folder instead.
    """

    _is_saving = False

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """Train as `Trainer` does; CheckpointError if the checkpoint to resume from is damaged, or saving fails."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.newest_intact_checkpoint(logger.warning, trial)
        else:
            if resume_from_checkpoint:
                expect_intact(Path(resume_from_checkpoint))
            self._clean(Path(self._get_output_dir(trial)), [])
        return super().train(resume_from_checkpoint or None, trial, **kwargs)

    def newest_intact_checkpoint(self, say: Callable[[str], None], trial: Any = None) -> str | None:
        """Return the path of the newest intact checkpoint, to resume from; None if none was written yet.

        Newer, damaged checkpoints are renamed to `_damaged-checkpoint-N`. `say` is called with lines for the user.
        Raise CheckpointError if there are checkpoints and none of them is intact.
        """
        folder = Path(self._get_output_dir(trial))
        damaged: dict[Path, str] = {}
        candidates = reversed(numbered_checkpoints(folder))
        while (newest := next(candidates, None)) and (fault := fault_of_checkpoint(newest)):
            damaged[newest] = fault
        if damaged and newest is None:
            faults = "; ".join(f"{path.name}: {fault}" for path, fault in damaged.items())
            raise CheckpointError(f"No checkpoint in {folder} is intact ({faults}). Delete them to start again.")
        self._clean(folder, list(damaged))
        for path, fault in damaged.items():
            say(f"Skipped {path.name}, now called {SET_ASIDE}{path.name}: {fault}.")
        if newest is None:
            say("No checkpoint yet: starting at step 0.")
            return None
        say(f"Resuming from {newest}.")
        manifest = read_manifest(newest) or {}
        before, now = (manifest["torch"], manifest["torch_threads"]), (torch.__version__, torch.get_num_threads())
        if before != now:
            say(
                f"It was written by torch {before[0]} with {before[1]} threads, this is torch {now[0]} with {now[1]}: "
                "the last bits may differ from those of an uninterrupted run."
            )
        return str(newest)

    def _clean(self, folder: Path, damaged: list[Path]) -> None:
        """Delete the subfolder `_unfinished`, left behind by a killed save, and rename the damaged checkpoints."""
        self.accelerator.wait_for_everyone()  # all processes have looked before anything changes
        if self.args.should_save:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            for path in damaged:
                shutil.rmtree(folder / f"{SET_ASIDE}{path.name}", ignore_errors=True)
                path.rename(folder / f"{SET_ASIDE}{path.name}")
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
            step = self.state.best_global_step
            best = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"  # the final path, not the one in `_unfinished`
            if step and (step == self.state.global_step or best.is_dir()):
                self.state.best_model_checkpoint = str(best)
            self.accelerator.wait_for_everyone()  # each process writes files of its own
            if self.args.should_save:
                self._publish(checkpoint)
        except WRITE_ERRORS as error:
            line = cannot_write(checkpoint, folder / UNFINISHED, error)
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            raise CheckpointError(line) from error
        finally:
            self._is_saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            best_model = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), self.args.save_total_limit, best_model, use_mtime=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _publish(self, checkpoint: Path) -> None:
        """Move a checkpoint from the folder `_unfinished` to the path `checkpoint`, replacing what is there.

        First, all its files are flushed to the disk, and their checksums are written to a manifest.
        """
        unfinished = checkpoint.parent / UNFINISHED
        written = unfinished / checkpoint.name
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))  # again, with the final path of the best
        threads = torch.get_num_threads()
        seal(written, {"step": step_of(checkpoint), "torch": torch.__version__, "torch_threads": threads})
        if checkpoint.exists():
            checkpoint.rename(unfinished / "replaced")
        written.rename(checkpoint)
        to_disk(checkpoint.parent)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(checkpoint.parent / f"{SET_ASIDE}{checkpoint.name}", ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        token, self.args.hub_token = self.args.hub_token, None  # it would be in the pickle, in clear text
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # a background upload would fail once the folder is renamed
            super()._push_from_checkpoint(checkpoint_folder)

    # Everything is loaded by safetensors and torch.load(weights_only=True), which run no code of the checkpoint.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        ignored = getattr(self.model, "_keys_to_ignore_on_save", None) or ()
        derived = {*ignored, *getattr(self.model, "all_tied_weights_keys", ())}
        wrong = [*sorted(set(load_result.missing_keys) - derived), *load_result.unexpected_keys]
        if wrong:
            raise CheckpointError(f"The checkpoint does not fit the model: {len(wrong)} keys differ, {wrong[0]} first.")
        super()._issue_warnings_after_load(load_result)
