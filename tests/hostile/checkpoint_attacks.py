"""G10 and G11, attacks on checkpoints: kills at each file operation of a save and at random moments, and damage.

What counts is the end: weights, optimizer and schedule of the resumed run, compared bit by bit with those of an
undisturbed one.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerState

from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.durable import trainer_checkpoints as durable
from chexpert_hf.training.durable.intact import CheckpointError

from .checkpoint_damage import DAMAGES
from .promises import Figure, Settings, judged
from .runs import Run, SmallRun, WholeRun, checkpoints_of, differences

OPERATIONS = (
    (PreTrainedModel, "save_pretrained"),
    (torch, "save"),
    (TrainerState, "save_to_json"),
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (shutil, "rmtree"),
)
"""What a save does to files, in whatever order; each is a boundary."""


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def before_each_operation(step: int, act: Callable[[int], None]) -> Iterator[None]:
    """Calls `act` with a running number before each file operation of the save at `step`."""
    counter = iter(range(1_000_000))
    is_on = False
    save = durable.DurableCheckpoints._save_checkpoint
    originals = [(owner, name, getattr(owner, name)) for owner, name in OPERATIONS]

    def save_checkpoint(trainer: Trainer, *args: Any) -> None:
        nonlocal is_on
        is_on = trainer.state.global_step == step
        save(trainer, *args)
        is_on = False

    def wrapped(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_on:
            act(next(counter))
        return original(*args, **kwargs)

    durable.DurableCheckpoints._save_checkpoint = save_checkpoint
    for owner, name, original in originals:
        replacement = partial(wrapped, original)
        is_method = isinstance(owner, type)
        setattr(owner, name, _as_method(replacement) if is_method else replacement)
    try:
        yield
    finally:
        durable.DurableCheckpoints._save_checkpoint = save
        for owner, name, original in originals:
            setattr(owner, name, original)


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


# In processes of their own, which share the import of everything and nothing else.


def in_child(target: Callable[..., None], *args: Any, kill_after: float | None = None) -> int:
    """Runs a function in a process of its own, kills it after so many seconds if asked; gives its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.hostile.checkpoint_attacks"])
    process = context.Process(target=target, args=args)
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_and_die(run: Run, folder: Path, workers: int, step: int, boundary: int) -> None:
    """Trains, and is killed before the file operation with this number in the save at `step`."""
    _prepare()
    with before_each_operation(step, lambda number: kill_this_process() if number == boundary else None):
        run.train(folder, workers=workers, resume=False)


def run_through(run: Run, folder: Path, workers: int, resume: bool) -> None:
    _prepare()
    run.train(folder, workers=workers, resume=resume)


def _prepare() -> None:
    # What a child of a fork server starts would get a fork server of its own, and import everything again.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def kill_at_each_boundary(run: Run, scratch: Path, undisturbed: Path, workers: int, step: int) -> tuple[int, list[str]]:
    """How many boundaries the save at `step` has, and which resumptions did not end in the same bits."""
    wrong = []
    boundary = 0
    while True:
        folder = scratch / f"{run.name}-{workers}-boundary-{boundary}"
        code = in_child(run_and_die, run, folder, workers, step, boundary)
        if code == 0:
            return boundary, wrong  # the save has no more operations
        if code != -signal.SIGKILL:
            wrong.append(f"boundary {boundary}: the run ended with {code} before it was killed")
        wrong += resumed_differs(run, folder, undisturbed, workers, f"boundary {boundary}")
        boundary += 1


def kill_at_random(
    run: Run, scratch: Path, undisturbed: Path, workers: int, count: int, seconds: float, seed: int = 0
) -> tuple[int, list[str]]:
    """How many of `count` runs were killed before their end, and which did not end in the same bits.

    Args:
        seconds: A run's duration; it is killed at a random moment of it.
    """
    draw = random.Random(seed)
    killed, wrong = 0, []
    for number in range(count):
        folder = scratch / f"{run.name}-{workers}-random-{number}"
        moment = draw.uniform(0.05, 1) * seconds
        killed += in_child(run_through, run, folder, workers, False, kill_after=moment) == -signal.SIGKILL
        wrong += resumed_differs(run, folder, undisturbed, workers, f"after {moment:.2f} s")
    return killed, wrong


def resumed_differs(run: Run, folder: Path, undisturbed: Path, workers: int, what: str) -> list[str]:
    code = in_child(run_through, run, folder, workers, True)
    found = [f"exit code {code}"] if code else differences(folder, undisturbed)
    shutil.rmtree(folder, ignore_errors=True)
    return [f"{what}: {', '.join(found)}"] if found else []


# Damage


def outcome(run: Run, finished: Path, folder: Path, damage: Callable[[Path, Path], None]) -> str:
    """What becomes of a run whose newest checkpoint is damaged: "fell back", "stopped: ..." or "SILENT: ..."."""
    shutil.copytree(finished, folder)
    *_, previous, newest, last = checkpoints_of(folder)
    shutil.rmtree(last)  # so that something is left to train
    damage(newest, previous)
    lines: list[str] = []
    try:
        run.train(folder, workers=0, resume=True, say=lines.append)
    except CheckpointError as error:
        text = str(error)
        return f"stopped: {text}" if "\n" not in text else f"SILENT: several lines: {text}"
    found = differences(folder, finished)
    if found:
        return f"SILENT: {', '.join(found)}"
    is_said = any(previous.name in line for line in lines) and any("Skipped" in line for line in lines)
    return "fell back" if is_said else "SILENT: nothing was said"


def damage_all(run: Run, finished: Path, scratch: Path) -> dict[str, str]:
    return {name: outcome(run, finished, scratch / f"damage-{i}", act) for i, (name, act) in enumerate(DAMAGES.items())}


# Rows


def damage_rows(_: Settings) -> Iterator[Figure]:
    """G11."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run, finished = SmallRun(), Path(name) / "finished"
        run.train(finished, workers=0, resume=False)
        outcomes = damage_all(run, finished, Path(name))
    for damage, text in outcomes.items():
        if not text.startswith("fell"):
            print(f"G11 {damage}: {text}", file=sys.stderr)
    counts = {kind: sum(text.startswith(kind) for text in outcomes.values()) for kind in ("fell", "stopped", "SILENT")}
    yield judged(
        f"{len(outcomes)} ways to damage the newest checkpoint, then --resume",
        {
            "fell back, bit-equal at the end": counts["fell"],
            "stopped with one line": counts["stopped"],
            "silent": counts["SILENT"],
        },
        {"none silent": counts["SILENT"] == 0, "the others fall back or stop": sum(counts.values()) == len(outcomes)},
    )


def kill_rows(settings: Settings) -> Iterator[Figure]:
    """G10."""
    assert in_child(_prepare) == 0  # the first child waits for the imports, which is no part of a run's duration
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        root = scratch / "phantoms"
        write_phantoms(root, num_studies=66, seed=5, valid_fraction=0.4)
        for run in (SmallRun(), WholeRun(root)):
            for workers in (0, 2):
                yield _kill_row(run, scratch, workers, settings.kills)


def _kill_row(run: Run, scratch: Path, workers: int, num_random: int) -> Figure:
    undisturbed = scratch / f"{run.name}-{workers}"
    start = time.monotonic()
    assert in_child(run_through, run, undisturbed, workers, False) == 0
    seconds = time.monotonic() - start
    count, wrong = kill_at_each_boundary(run, scratch, undisturbed, workers, run.second_step)
    killed, wrong_random = kill_at_random(run, scratch, undisturbed, workers, num_random, seconds)
    for line in [*wrong, *wrong_random]:
        print(f"G10 {run.name}, workers {workers}: {line}", file=sys.stderr)
    total = count + num_random
    equal = total - len(wrong) - len(wrong_random)
    return judged(
        f"kill -9 at {count} file operations of a save and at {num_random} random moments ({killed} before the end), "
        f"{run.what}, workers {workers}",
        {"resumed to the same bits": f"{equal} of {total}"},
        {"all bit-equal": equal == total, "a save has file operations": count > 0},
    )
