"""The table of the sixteen promises: a row or more for each, with its figure, and FAILED where it was not kept.

    python -m tests.hostile --model MODEL --radiographs FOLDER [--only G5,G8]

Each promise is tried in a process of its own, so that what one leaves behind (memory, threads, a crash) is no figure of
the next. The exit code is 1 if any was not kept.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from tests.hostile.promises import Figure, Settings

MAX_SECONDS = 900
"""After which a promise counts as not kept."""

_IMAGES = (".jpg", ".jpeg", ".png", ".dcm")


@dataclass(frozen=True)
class Promise:
    """What is promised, and which function, in which module, tries it: `(Settings) -> Iterator[Figure]`."""

    number: str
    text: str
    module: str
    function: str


PROMISES = (
    Promise("G1", "malformed files through the reader", "reader_rows", "malformed_files"),
    Promise("G2", "mutants of valid files through the reader", "reader_rows", "mutated_files"),
    Promise("G3", "bombs", "reader_rows", "bombs_alone"),
    Promise("G4", "the same scores everywhere", "same_scores", "scores_everywhere"),
    Promise("G5", "many clients", "load", "answer_many"),
    Promise("G6", "more clients than the queue holds", "load", "overfill"),
    Promise("G7", "many requests", "load", "go_on"),
    Promise("G8", "stalled, aborted and large uploads", "upload_attacks", "attack_uploads"),
    Promise("G9", "planted identities", "identity", "look_for_identity"),
    Promise("G10", "kills of a training run", "checkpoint_attacks", "kill_rows"),
    Promise("G11", "damaged checkpoints", "checkpoint_attacks", "damage_rows"),
    Promise("G12", "full disks", "full_disk", "disk_rows"),
    Promise("G13", "bad files in a data set", "bad_rows", "file_rows"),
    Promise("G14", "kills of a folder's scoring", "killed_scoring", "kill_and_resume"),
    Promise("G15", "tampered models, pickles, code", "tampering", "tampered_files"),
    Promise("G16", "SIGTERM while many wait", "load", "stop_while_many_wait"),
)


def figures_of(promise: Promise, settings: Settings, seconds: float = MAX_SECONDS) -> Iterator[Figure]:
    """What a promise's process says, and a broken row if it crashes or does not end."""
    context = get_context("spawn")  # a fork would have this process's memory and threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(promise, settings, theirs))
    process.start()
    theirs.close()
    end = time.monotonic() + seconds
    is_done = False
    try:
        while time.monotonic() < end and not is_done:
            if ours.poll(0.5):
                try:
                    yield ours.recv()
                except EOFError:
                    is_done = True
            else:
                is_done = not process.is_alive() and not ours.poll()
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            yield Figure(promise.text, f"not at its end after {seconds:.0f} s", ("an end",))
        elif process.exitcode:
            yield Figure(promise.text, f"its process ended with {process.exitcode}", ("no crash",))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with what it started
        process.kill()  # it may not have begun, and have no group of its own yet
        process.join()


def _report(promise: Promise, settings: Settings, to: Connection) -> None:
    os.setsid()
    sys.stdout = sys.stderr  # the table alone goes to standard output
    try:
        for figure in getattr(import_module(f"tests.hostile.{promise.module}"), promise.function)(settings):
            to.send(figure)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the row's, and the others follow
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0][:200]
        to.send(Figure(promise.text, f"could not be tried: {type(error).__name__}: {line}", ("being tried",)))


def table_line(number: str, figure: Figure) -> str:
    """A row in Markdown."""
    verdict = f"FAILED: {'; '.join(figure.broken)}" if figure.broken else "kept"
    cells = (number, figure.tried, figure.found, verdict)
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def chosen(only: str) -> list[Promise]:
    """The promises with these numbers, in the order of the table; all if none is named."""
    numbers = {number.strip().upper() for number in only.split(",") if number.strip()}
    if unknown := numbers - {promise.number for promise in PROMISES}:
        raise SystemExit(f"Expected numbers from G1 to G16, got {', '.join(sorted(unknown))}.")
    return [promise for promise in PROMISES if not numbers or promise.number in numbers]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--radiographs", required=True, type=Path)
    parser.add_argument("--only", default="", help="numbers of promises, with commas between")
    parser.add_argument("--mutants", type=int, default=Settings.mutants)
    parser.add_argument("--requests", type=int, default=Settings.requests)
    parser.add_argument("--kills", type=int, default=Settings.kills, help="random kills of each kind of training run")
    parser.add_argument("--runtime", default=Settings.runtime)
    parser.add_argument("--precision", default=Settings.precision)
    options = vars(parser.parse_args(arguments))
    promises = chosen(options.pop("only"))
    files = sorted(path for path in options.pop("radiographs").rglob("*") if path.suffix.lower() in _IMAGES)
    if not files:
        raise SystemExit(f"Expected a folder of radiographs ({', '.join(_IMAGES)}), found none.")
    settings = Settings(radiographs=tuple(files), **options)
    begin, num_broken = time.monotonic(), 0
    print("| promise | what was tried | figure | |\n| --- | --- | --- | --- |", flush=True)
    for promise in promises:
        start = time.monotonic()
        print(f"{promise.number}, {promise.text} ...", file=sys.stderr, flush=True)
        for figure in figures_of(promise, settings):
            num_broken += bool(figure.broken)
            print(table_line(promise.number, figure), flush=True)
        print(f"{promise.number} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(
        f"\n{num_broken} rows FAILED; {time.monotonic() - begin:.0f} s, load average {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} processors",
        flush=True,
    )
    sys.exit(1 if num_broken else 0)
