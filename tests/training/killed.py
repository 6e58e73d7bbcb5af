"""Training runs in a process of their own, which kills itself at a given place."""

import multiprocessing
import os
import signal
from pathlib import Path

from chexpert_hf.training import run, trainer
from chexpert_hf.training.recipe import Recipe

# Its children start with the package imported, which takes longer than the runs; and they inherit no GPU's state.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def run_until_killed(phantoms: Path, output: Path, recipe: Path, where: str, resume: bool) -> None:
    """Trains until `where`, "step N" or "saving N", where the process must end by SIGKILL."""
    process = _PROCESSES.Process(target=_train, args=(phantoms, output, recipe, where, resume))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _train(phantoms: Path, output: Path, recipe: Path, where: str, resume: bool) -> None:
    def die_at(place: str) -> None:
        if where == place:
            os.kill(os.getpid(), signal.SIGKILL)

    class Killer(trainer.BestCheckpoints):
        def on_step_begin(self, args, state, control, **kwargs):
            die_at(f"step {state.global_step}")

    class KilledWhileSaving(trainer.CheXpertTrainer):
        def _save_rng_state(self, folder):  # in the middle of a save
            die_at(f"saving {self.state.global_step}")
            super()._save_rng_state(folder)

    # Workers that load images must be children of this process, with which they end.
    multiprocessing.set_start_method("fork", force=True)
    trainer.BestCheckpoints, trainer.CheXpertTrainer = Killer, KilledWhileSaving
    run.train(Recipe.load(recipe), phantoms, output, resume=resume)
