"""Attacks on checkpoints: kills at each file operation of a save and at random moments, damage, and a full disk.

Run all with `python -m tests.hostile.checkpoint_attacks` (some minutes); the default suite takes a sample. What counts
is the end: weights, optimizer and schedule of the resumed run, compared bit by bit with those of an undisturbed one.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, Trainer, TrainerState

from chexpert_hf.data.image_files import find_bad_files
from chexpert_hf.data.phantom import write_phantoms
from chexpert_hf.training import durable, manifest
from chexpert_hf.training.intact import CheckpointError

from .checkpoint_damage import DAMAGES
from .runs import Run, SmallRun, WholeRun, checkpoints_of, differences

Row = tuple[str, str, str]

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
    is_said = any(previous.name in line for line in lines) and any("Passed over" in line for line in lines)
    return "fell back" if is_said else "SILENT: nothing was said"


def damage_all(run: Run, finished: Path, scratch: Path) -> dict[str, str]:
    return {name: outcome(run, finished, scratch / f"damage-{i}", act) for i, (name, act) in enumerate(DAMAGES.items())}


# Full disk: needs a small file system of its own, so in a process that has one mounted.

STAGES = {
    "weights": (PreTrainedModel, "save_pretrained", 1),
    "optimizer": (Trainer, "_save_optimizer_and_scheduler", 1),
    "state": (TrainerState, "save_to_json", 2),
    "manifest": (manifest, "_text", 1),
}
"""What writes a part of a checkpoint, and how often it has done so before the second checkpoint."""


def fill_disk_at(stage: str, disk: Path) -> dict[str, str]:
    """Trains on a disk that is full when the second checkpoint comes to a stage, then with room again."""
    run = SmallRun()
    folder, ballast = disk / "run", disk / "ballast"
    owner, name, num_before = STAGES[stage]
    original = getattr(owner, name)
    calls = iter(range(1_000_000))

    def full(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == num_before:
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(1024)):
                        pass
                except OSError:
                    pass
        return original(*args, **kwargs)

    setattr(owner, name, full)
    try:
        run.train(folder, workers=0, resume=False)
        line = "SILENT: nothing was raised"
    except CheckpointError as error:
        line = str(error)
    finally:
        setattr(owner, name, original)
        ballast.unlink(missing_ok=True)
    run.train(folder, workers=0, resume=True, say=lambda line: None)
    run.train(disk / "undisturbed", workers=0, resume=False)
    found = differences(folder, disk / "undisturbed")
    return {"line": line, "differs": ", ".join(found)}


def disk_full(stage: str, scratch: Path) -> dict[str, str] | None:
    """`fill_disk_at` on a disk of 2 MB; None where none can be mounted."""
    disk = scratch / "disk"
    disk.mkdir(exist_ok=True)
    command = (
        f'mount -t tmpfs -o size=2m tmpfs "{disk}" && "{sys.executable}" -m {__spec__.name} --stage {stage} "{disk}"'
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


# Everything


def all_rows(scratch: Path, num_random: int = 20, say: Callable[[str], None] = print) -> Iterator[Row]:
    """What was promised, what was run, and the figure, as they come; needs no test to have run.

    Args:
        scratch: An empty folder on a disk; some 100 MB come and go.
        num_random: Random kills for each kind of run.
        say: Takes a line for each attack that ended otherwise than by falling back.
    """
    yield from damage_rows(scratch, say)
    yield from disk_rows(scratch, say)
    yield from file_rows(scratch)
    yield from kill_rows(scratch, num_random, say)


def kill_rows(scratch: Path, num_random: int, say: Callable[[str], None]) -> Iterator[Row]:
    assert in_child(_prepare) == 0  # the first child waits for the imports, which is no part of a run's duration
    root = scratch / "phantoms"
    write_phantoms(root, num_studies=66, seed=5, valid_fraction=0.4)
    for run in (SmallRun(), WholeRun(root)):
        for workers in (0, 2):
            undisturbed = scratch / f"{run.name}-{workers}"
            start = time.monotonic()
            assert in_child(run_through, run, undisturbed, workers, False) == 0
            seconds = time.monotonic() - start
            count, wrong = kill_at_each_boundary(run, scratch, undisturbed, workers, run.second_step)
            killed, wrong_random = kill_at_random(run, scratch, undisturbed, workers, num_random, seconds)
            for line in [*wrong, *wrong_random]:
                say(f"G10 {run.name}, workers {workers}: {line}")
            yield (
                "G10",
                f"kill -9 at {count} file operations of a save and at {num_random} random moments ({killed} before the "
                f"end), {run.what}, workers {workers}",
                f"{count + num_random - len(wrong) - len(wrong_random)} of {count + num_random} resumed bit-equal",
            )


def damage_rows(scratch: Path, say: Callable[[str], None]) -> Iterator[Row]:
    run = SmallRun()
    finished = scratch / "finished"
    run.train(finished, workers=0, resume=False)
    outcomes = damage_all(run, finished, scratch)
    counts = {kind: sum(text.startswith(kind) for text in outcomes.values()) for kind in ("fell", "stopped", "SILENT")}
    for name, text in outcomes.items():
        if not text.startswith("fell"):
            say(f"G11 {name}: {text}")
    yield (
        "G11",
        f"{len(outcomes)} ways to damage the newest checkpoint, then --resume",
        f"{counts['fell']} fell back, bit-equal at the end; {counts['stopped']} stopped with one line; "
        f"{counts['SILENT']} silent",
    )


def disk_rows(scratch: Path, say: Callable[[str], None]) -> Iterator[Row]:
    results = {stage: disk_full(stage, scratch) for stage in STAGES}
    run = {stage: result for stage, result in results.items() if result}
    for stage, result in run.items():
        say(f"G12 {stage}: {result['line']} {result['differs'] and 'DIFFERS ' + result['differs']}")
    good = [
        r for r in run.values() if "checkpoint-3 is intact" in r["line"] and "\n" not in r["line"] and not r["differs"]
    ]
    what = f"a disk of 2 MB, full at {', '.join(run)}" if run else "not run: no file system could be mounted here"
    yield "G12", what, f"{len(good)} of {len(run)}: one line that names the intact checkpoint; resume bit-equal"


def file_rows(scratch: Path) -> Iterator[Row]:
    """A data set of 1,000 rows with 20 bad files."""
    rows = [f"patient{number:05}/study1/view1_frontal.jpg" for number in range(1000)]
    root = scratch / "rows"
    for path in rows:
        (root / path).parent.mkdir(parents=True)
        Image.new("L", (32, 32), len(path)).save(root / path)
    (scratch / "outside.jpg").write_bytes((root / rows[0]).read_bytes())
    for number, path in enumerate(rows[7::50]):
        file = root / path
        content = file.read_bytes()
        file.unlink()
        if number % 5 == 1:
            file.symlink_to(scratch / "outside.jpg")
        elif number % 5:
            file.write_bytes((b"", content[: len(content) // 2], b"<html>404</html>")[number % 5 - 2])
    found = find_bad_files(root, rows)
    named = len(found.keys() & set(rows[7::50]))
    what = "1,000 rows, 20 bad: 4 each missing, empty, cut to half, no image, outside the root"
    yield "G13", what, f"{named} of 20 named before step 1, {len(found) - named} good ones refused"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=20, help="random kills of each kind of run")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("disk", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.stage:
        print(json.dumps(fill_disk_at(given.stage, given.disk)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for row in all_rows(Path(scratch), given.random, partial(print, flush=True)):
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
