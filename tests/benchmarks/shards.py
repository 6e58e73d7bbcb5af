"""A million links scored by four processes, one of which is killed and resumed: time, memory, and the rows of all.

    python -m tests.benchmarks.shards FOLDER [-n 1000000]

Reading and the network cost nothing here, so that finding, ordering, writing and resuming remain. FOLDER is filled with
links to 300 drawn radiographs, once; each process finds the files, scores its shard and writes its table there.
"""

import argparse
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.folders.score_output import Existing, ScoreOutput
from chexpert_hf.folders.score_run import Shard, score_to_file
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.scoring.classifier import BATCH_SIZE

SHARDS = 4
SOURCES = 300
TINY = {"growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2}


class Free(CheXpertClassifier):
    """Reads nothing, and gives every radiograph the scores of a blank one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        size = {"height": 64, "width": 64}
        super().__init__(
            CheXpertForImageClassification(CheXpertConfig(**TINY)).eval(), CheXpertImageProcessor(size=size)
        )
        self.blank = super().prepare(Image.new("L", (32, 32)))
        (self.scores,) = super().predict_prepared([self.blank])

    def read(self, source: Any) -> Any:
        return source

    def prepare(self, radiograph: Any, *, for_gate: bool = False) -> Any:
        return self.blank

    def predict_prepared(self, radiographs: Any, *, saliency: bool = False, batch_size: int = BATCH_SIZE) -> Any:
        return (self.scores for _ in radiographs)

    def side_by_side(self) -> Any:
        return [self]


def link(folder: Path, count: int) -> Path:
    """Fill a folder with `count` links, 1,000 in each folder below it, unless it has them."""
    links = folder / "links"
    if not links.exists():
        sources = [folder / f"source{seed}.jpg" for seed in range(SOURCES)]
        for seed, source in enumerate(sources):
            Image.fromarray(render_phantom(seed).image).resize((64, 64)).save(source)
        for number in range(count):
            place = links / f"{number // 1000:04d}"
            if number % 1000 == 0:
                place.mkdir(parents=True)
            (place / f"{number:07d}.jpg").symlink_to(sources[number % SOURCES])
    return links


def score_shard(folder: Path, index: int) -> None:
    """What one process of the job array does; prints its figures as JSON."""
    begin = time.perf_counter()
    files = find_radiographs([folder / "links"]).files
    found, memory = time.perf_counter() - begin, peak_mb()
    output = ScoreOutput(folder / f"scores.{index}.csv", existing=Existing.RESUME)
    score_to_file(Free(), files, output, shard=Shard(index, SHARDS))
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"finding_s": round(found, 1), "after_finding_mb": memory, "peak_mb": peak_mb()}
    print(json.dumps({**figures, "processor_s": round(used.ru_utime + used.ru_stime)}))


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int)
    options = parser.parse_args()
    if options.shard is None:
        score_all(options.folder, options.n)
    else:
        score_shard(options.folder, options.shard)


def score_all(folder: Path, count: int) -> None:
    """Start a process per shard, kill the first in the middle and start it again, and check the tables."""
    links = link(folder, count)
    command = [sys.executable, "-m", "tests.benchmarks.shards", str(folder), "--shard"]
    for table in folder.glob("scores.*"):
        table.unlink()
    begin = time.perf_counter()
    running = [subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True) for index in range(SHARDS)]
    first = folder / "scores.0.csv"
    while not (first.exists() and rows_in(first) > count // SHARDS // 3):
        time.sleep(0.2)
    os.kill(running[0].pid, signal.SIGKILL)
    running[0].wait()
    print(f"shard 0 killed with {rows_in(first):,} rows, and resumed", flush=True)
    running[0] = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    for index, process in enumerate(running):
        print(f"shard {index}:", process.communicate()[0].strip(), flush=True)
        assert process.returncode == 0
    print(f"all: {time.perf_counter() - begin:.0f} s")
    check(folder, find_radiographs([links]).files)


def rows_in(table: Path) -> int:
    with table.open("rb") as stream:
        return sum(1 for _ in stream) - 1


def check(folder: Path, files: Any) -> None:
    """That the shards' rows, merged batch by batch, are the files in their order, each once."""
    tables = [csv.reader((folder / f"scores.{index}.csv").open(newline="")) for index in range(SHARDS)]
    for table in tables:
        next(table)

    def merged() -> Any:
        while batch := [row for table in tables for _, row in zip(range(BATCH_SIZE), table, strict=False)]:
            yield from batch

    count = 0
    for row, file in zip_longest(merged(), files):
        assert row, file
        assert row[0] == str(file)
        count += 1
    print(f"merged: {count:,} rows, each file once, in order")


if __name__ == "__main__":
    main()
