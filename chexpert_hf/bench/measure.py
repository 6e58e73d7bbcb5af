"""Runs a benchmark: contenders take turns, round by round, so that whatever else the machine does hits them alike."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from chexpert_hf.bench.contenders import Spec

REFERENCE = Spec("chexpert-hf", "", "torch", "fp32").name
BASELINE = "torchxrayvision"

_SCORED = 32
"""Files on which scores are compared with the reference's."""


@dataclass
class Figures:
    """What was measured of one contender.

    Attributes:
        name: Of the contender.
        saliency: Whether maps were computed.
        end_to_end: Images per second from files to scores, of each round.
        model_only: Images per second through the network in batches, of each round.
        latencies: Seconds of single images through the network.
        mebibytes: Peak memory of the process.
        difference: Largest difference of a probability from PyTorch in float32; None where it cannot be compared.
        failure: Why there are no figures.
    """

    name: str
    saliency: bool = False
    end_to_end: list[float] = field(default_factory=list)
    model_only: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    mebibytes: float | None = None
    difference: float | None = None
    failure: str | None = None

    @property
    def title(self) -> str:
        """Name, and whether with maps."""
        return f"{self.name}, with maps" if self.saliency and self.name.startswith("chexpert-hf") else self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


class _Process:
    """A contender in its process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.figures = Figures(spec.name, spec.saliency)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chexpert_hf.bench.worker", json.dumps(spec.to_dict())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Until it is loaded and warm, or has failed."""
        self._receive()

    def ask(self, what: str, **request: Any) -> Any:
        """The answer to a request; None if the process is gone."""
        if self.figures.failure is not None or self._process.stdin is None:
            return None
        self._process.stdin.write(json.dumps({"what": what, **request}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            _, errors = self._process.communicate()
            lines = [text.strip() for text in errors.splitlines() if text.strip()]
            self.figures.failure = lines[-1][:200] if lines else f"exit code {self._process.returncode}"
            return None
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def run_benchmark(
    specs: Sequence[Spec],
    paths: Sequence[str],
    *,
    rounds: int,
    batches: int = 8,
    latencies: int = 10,
    say: Callable[[str], None],
) -> list[Figures]:
    """Measures all contenders.

    Args:
        specs: The contenders.
        paths: Radiographs; each round scores all of them.
        rounds: In each, every contender has its turn, in an order that is turned around each time.
        batches: Through the network alone, in each round.
        latencies: Single images, in each round.
        say: Takes lines about the progress.
    """
    processes: list[_Process] = []
    try:
        for spec in specs:  # one after the other: loading and converting take all cores
            say(f"Loading {spec.name}{' with maps' if spec.saliency else ''}.")
            process = _Process(spec)
            processes.append(process)
            process.wait()
            if process.figures.failure:
                say(f"{spec.name} does not take part: {process.figures.failure}")
        _compare_scores(processes, paths[:_SCORED])
        for number in range(rounds):
            start = time.perf_counter()
            for process in processes if number % 2 == 0 else reversed(processes):
                _take_turn(process, paths, batches, latencies)
            say(f"Round {number + 1} of {rounds} took {time.perf_counter() - start:.0f} s.")
        for process in processes:
            if answer := process.ask("memory"):
                process.figures.mebibytes = answer["mebibytes"]
    finally:
        for process in processes:
            process.close()
    return [process.figures for process in processes]


def _take_turn(process: _Process, paths: Sequence[str], batches: int, latencies: int) -> None:
    figures = process.figures
    if answer := process.ask("files", paths=list(paths)):
        figures.end_to_end.append(len(paths) / answer["seconds"])
    if answer := process.ask("batches", count=batches):
        figures.model_only.append(batches * process.spec.batch_size / answer["seconds"])
    if answer := process.ask("latencies", count=latencies):
        figures.latencies += answer["seconds"]


def _compare_scores(processes: Sequence[_Process], paths: Sequence[str]) -> None:
    """Every contender scores the same files, the reference among them; that warms up its reading, too."""
    answers = [(process, process.ask("scores", paths=list(paths))) for process in processes]
    reference = next(
        (np.array(answer["scores"]) for process, answer in answers if answer and process.spec.name == REFERENCE), None
    )
    for process, answer in answers:
        if answer and answer["scores"] is not None and reference is not None:
            process.figures.difference = float(np.abs(np.array(answer["scores"]) - reference).max())


def as_table(results: Sequence[Figures]) -> str:
    """A line per contender; rates are medians over the rounds with the lowest and the highest."""
    baseline = next((item for item in results if item.name == BASELINE and item.end_to_end), None)
    width = max(len(item.title) for item in results)
    header = f"{'':<{width}}  {'files to scores, images/s':>26}"
    header += f"  {'x ' + BASELINE:>17}" if baseline else ""
    lines = [f"{header}  {'network alone, images/s':>26}  {'one image p50, p95':>18}  {'memory':>9}  difference"]
    for item in results:
        if item.failure or not item.end_to_end:
            lines.append(f"{item.title:<{width}}  did not take part: {item.failure or 'no rounds'}")
            continue
        row = f"{item.title:<{width}}  {_rate(item.end_to_end):>26}"
        row += f"  {median(item.end_to_end) / median(baseline.end_to_end):>17.2f}" if baseline else ""
        p50, p95 = (float(np.percentile(item.latencies, q)) * 1000 for q in (50, 95))
        memory = "" if item.mebibytes is None else f"{item.mebibytes:,.0f} MiB"
        difference = "" if item.difference is None else f"{item.difference:.1e}"
        lines.append(
            f"{row}  {_rate(item.model_only):>26}  {f'{p50:.0f}, {p95:.0f} ms':>18}  {memory:>9}  {difference}"
        )
    return "\n".join(lines)


def _rate(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
