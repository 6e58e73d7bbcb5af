"""Training runs in processes of their own: one that kills itself at a given place, and several that share a run."""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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


def torchrun(num_processes: int, logs: Path, arguments: list[str]) -> dict[str, list[str]]:
    """Runs `train.train` in several processes as torchrun does; returns the "stdout.log" and "stderr.log" of each."""
    process = _PROCESSES.Process(target=_launch, args=(num_processes, logs, arguments))
    process.start()
    process.join()
    names = ("stdout.log", "stderr.log")
    output = {name: [path.read_text() for path in sorted(logs.rglob(name))] for name in names}
    assert process.exitcode == 0, output["stderr.log"]
    return output


def _launch(num_processes: int, logs: Path, arguments: list[str]) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    elastic_launch(config, _run_script)(arguments)


def _run_script(arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module("train.train", run_name="__main__", alter_sys=True)
