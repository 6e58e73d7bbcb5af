"""G14: `chexpert-hf predict` of a folder, killed again and again, ends in the bytes of one that was not."""

import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.promises import Figure, Settings, judged

NUM_FILES, BAD = 2_000, 20
SIDE = 64
KILLS = 5
BATCH = 16
SECONDS = 300


@dataclass(frozen=True)
class Death:
    """Of a run.

    Attributes:
        rows: Whole rows that it left behind, those before it included.
        begun_with: Rows that it had found there and kept.
    """

    rows: int
    begun_with: int


def kill_and_resume(settings: Settings, num_files: int = NUM_FILES, seed: int = 0) -> Iterator[Figure]:
    """Kills at moments that are drawn: after so many rows, and some hundredths of a second."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, whole, output = (Path(name) / part for part in ("films", "whole.csv", "killed.csv"))
        files = write_films(folder, num_files)
        _predict(settings, folder, whole).wait(SECONDS)
        moments = sorted(draw.sample(range(num_files // 10, num_files * 9 // 10), KILLS))
        deaths = [_kill_after(settings, folder, output, rows, draw.uniform(0, 0.1)) for rows in moments]
        last = _predict(settings, folder, output)
        text, _ = last.communicate(timeout=SECONDS)
        with output.open(newline="") as table:
            paths = [row["path"] for row in csv.DictReader(table)]
        is_same = output.read_bytes() == whole.read_bytes()
        resumed = json.loads(text.splitlines()[-1])["resumed"] if last.returncode in (0, 1) else -1
    begun_with = [*(death.begun_with for death in deaths[1:]), resumed]
    # A batch that was being written is scored again, and nothing else.
    lost = [death.rows - kept for death, kept in zip(deaths, begun_with, strict=True)]
    yield judged(
        f"a folder of {num_files:,} files, {BAD} of them bad, killed {KILLS} times after "
        f"{', '.join(str(death.rows) for death in deaths)} rows, then resumed",
        {
            "files with one row": sum(paths.count(file) == 1 for file in set(paths) & set(files)),
            "rows": len(paths),
            "same bytes as undisturbed": is_same,
            "rows scored again": sum(lost),
        },
        {
            "the last run ends as it should": last.returncode == 1,  # 1: some files are bad
            "killed in the middle": all(0 < death.rows < num_files for death in deaths),
            "each file exactly once": paths == files,
            "the same bytes": is_same,
            "no more than a batch scored again each time": all(0 <= rows <= BATCH for rows in lost),
        },
    )


def write_films(folder: Path, count: int) -> list[str]:
    """So many small images, some of them bad; gives their paths in order."""
    folder.mkdir()
    random_pixels = np.random.default_rng(0)
    files = []
    for number in range(count):
        file = folder / f"film{number:05d}.png"
        Image.fromarray(random_pixels.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(file, compress_level=0)
        if number % (count // BAD) == count // BAD - 1:
            file.write_bytes(file.read_bytes()[: number % SIDE])
        files.append(str(file))
    return files


def _kill_after(settings: Settings, folder: Path, output: Path, rows: int, seconds: float) -> Death:
    """Kills a run when it has written so many rows, and some time more."""
    begun_with = _num_rows(output)
    rows = max(rows, begun_with + 2 * BATCH)  # the one before may have got far
    process = _predict(settings, folder, output)
    end = time.monotonic() + SECONDS
    while process.poll() is None and _num_rows(output) < rows and time.monotonic() < end:
        begun_with = min(begun_with, _num_rows(output))  # what it does not trust it cuts off
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return Death(_num_rows(output), begun_with)


def _num_rows(output: Path) -> int:
    return max(0, output.read_bytes().count(b"\n") - 1) if output.exists() else 0  # but for the header


def _predict(settings: Settings, folder: Path, output: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "chexpert_hf.cli", "predict", str(folder), "--model", settings.model]
    command += ["--output", str(output), "--resume", "--json", "--batch-size", str(BATCH)]
    command += ["--runtime", settings.runtime, "--precision", settings.precision]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
