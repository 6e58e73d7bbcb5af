"""Run a benchmark of contenders: ways of scoring radiographs, such as one runtime in one precision.

They take turns, round by round, so that other load on the machine affects all alike. Each has a process of its own, so
that its memory can be measured and no thread pools interfere.
"""

import multiprocessing
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.files import first_line

REFERENCE = "chexpert-hf, torch fp32"  # the contender with which all others' probabilities are compared

_COMPARED_FILES = 32
_BATCHES, _SINGLES = 8, 10  # timed batches and single images, in each round
_UNITS_PER_MIB = 1024**2 if sys.platform == "darwin" else 1024  # bytes on macOS, else KiB


class Contender(ABC):
    """A way of scoring radiographs whose speed is measured, such as one runtime; it scores `batch_size` at a time."""

    batch_size: int

    @abstractmethod
    def score(self, paths: Sequence[str]) -> NDArray[np.floating] | None:
        """Read and score files; return probabilities `(num_files, num_labels)`.

        The benchmark compares them with those of the package itself in PyTorch and float32. The row of a file that
        cannot be read is NaN. Return None if the probabilities cannot be compared.
        """

    @abstractmethod
    def forward(self, count: int) -> None:
        """Run the network alone, on one batch of `count` images in memory."""

    def forward_batches(self, times: int) -> None:
        """Run the network alone on `times` full batches, one after the other.

        Override this if `score` runs several batches in parallel.
        """
        for _ in range(times):
            self.forward(self.batch_size)


@dataclass(frozen=True)
class Spec:
    """How to create one `Contender`, a way of scoring whose speed is measured: its name, function and settings."""

    name: str
    make: Callable[[], Contender]  # called in the contender's own process, so it must be picklable
    batch_size: int
    saliency: bool = False  # whether the contender computes maps


@dataclass
class Measurements:
    """The measured speed and memory of one `Contender`, a way of scoring radiographs."""

    name: str
    saliency: bool = False
    end_to_end: list[float] = field(default_factory=list)  # images per second from files to scores, in each round
    model_only: list[float] = field(default_factory=list)  # images per second through the network, in each round
    latencies: list[float] = field(default_factory=list)  # seconds of the network for one image, several in each round
    mebibytes: float | None = None  # peak memory of the process; None if it cannot be measured
    difference: float | None = None  # largest difference from the probabilities of torch in fp32; None if unknown
    failure: str | None = None  # why there are no results

    @property
    def title(self) -> str:
        """The contender's name, followed by "with maps" if it computes maps."""
        return f"{self.name}, with maps" if self.saliency else self.name


class _Process:
    """A child process that holds one `Contender`, a way of scoring, and runs it.

    Its measured speeds are collected in the attribute `measured`.
    """

    def __init__(self, spec: Spec, stack: ExitStack) -> None:
        self.spec, self.measured = spec, Measurements(spec.name, spec.saliency)
        # Spawned: a forked process would share the memory of this one.
        self.pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _silence))
        self.ask(_load, spec.make)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the process and return its result; None if this call or an earlier one failed."""
        if self.measured.failure is not None:
            return None
        try:
            return self.pool.submit(_call, function, *arguments).result()
        except RuntimeError as error:  # from `_call`, or because the process has died
            self.measured.failure = first_line(error)
            return None

    def take_turn(self, paths: Sequence[str]) -> None:
        if answer := self.ask(_timed, "score", paths):
            self.measured.end_to_end.append(len(paths) / answer[1])
        if answer := self.ask(_timed, "forward_batches", _BATCHES):
            self.measured.model_only.append(_BATCHES * self.spec.batch_size / answer[1])
        for _ in range(_SINGLES):
            if answer := self.ask(_timed, "forward", 1):
                self.measured.latencies.append(answer[1])


_loaded: list[Contender] = []


def _silence() -> None:
    """Discard this process's standard output and error, since messages of libraries would be mixed with the results."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; turn its errors into RuntimeErrors of one line, since some errors cannot be pickled."""
    try:
        return function(*arguments)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error


def _load(make: Callable[[], Contender]) -> None:
    _loaded.append(make())
    _loaded[0].forward_batches(1)
    _loaded[0].forward(1)


def _timed(method: str, argument: Any) -> tuple[Any, float]:
    """Call a method of this process's Contender with one argument; return its result and the seconds that it took.

    `method` is its name, such as "score". A Contender is a way of scoring whose speed is measured.
    """
    start = time.perf_counter()
    result = getattr(_loaded[0], method)(argument)
    return result, time.perf_counter() - start


def _peak_mebibytes() -> float | None:
    """Return the peak memory of this process in MiB; None where the operating system has no `resource`."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNITS_PER_MIB


def run_benchmark(
    specs: Sequence[Spec], paths: Sequence[str], *, rounds: int, say: Callable[[str], None]
) -> list[Measurements]:
    """Measure the speed and memory of several ways of scoring radiographs; return results in the order of `specs`.

    Args:
        specs: The ways of scoring (contenders), such as one runtime in one precision.
        paths: Radiographs; in each round every contender scores all of them.
        rounds: Number of rounds; the order of the contenders is reversed each time.
        say: Called with each line on the progress.
    """
    with ExitStack() as stack:
        processes = []
        for spec in specs:  # one after the other: loading and converting take all cores
            process = _Process(spec, stack)
            processes.append(process)
            title, failure = process.measured.title, process.measured.failure
            say(f"{title} does not take part: {failure}" if failure else f"Loaded {title}.")
        # Every contender scores the same files, which also warms up its reading.
        answers = [(process.measured, process.ask(_timed, "score", paths[:_COMPARED_FILES])) for process in processes]
        scores = [(measured, answer[0]) for measured, answer in answers if answer and answer[0] is not None]
        reference = next((values for measured, values in scores if measured.name == REFERENCE), None)
        for measured, values in scores if reference is not None else ():
            measured.difference = float(np.fmax.reduce(np.abs(values - reference), axis=None))  # NaN: files not read
        for number in range(rounds):
            start = time.perf_counter()
            for process in processes if number % 2 == 0 else reversed(processes):
                process.take_turn(paths)
            say(f"Round {number + 1} of {rounds} took {time.perf_counter() - start:.0f} s.")
        for process in processes:
            process.measured.mebibytes = process.ask(_peak_mebibytes)
    return [process.measured for process in processes]


def as_table(results: Sequence[Measurements], baseline: str = REFERENCE) -> str:
    """Return the results as a text table, with a row for each contender (a way of scoring that was measured).

    The row has medians and ranges over the rounds, and the speed relative to the contender whose name is `baseline`.
    """
    base = next((item.end_to_end for item in results if item.name == baseline and item.end_to_end), None)
    from chexpert_hf.evaluation.tables import aligned  # here: the measured processes do not need it

    header = ["", "files to scores, images/s", "network alone, images/s", "one image p50, p95", "memory", "difference"]
    cells = [header[:2] + [f"x {baseline}"] * bool(base) + header[2:]]
    for item in results:
        if item.failure or not item.end_to_end:
            cells.append([item.title, f"did not take part: {item.failure or 'no rounds'}"])
            continue
        p50, p95 = (float(np.percentile(item.latencies, q)) * 1000 for q in (50, 95))
        both = (item.end_to_end, item.model_only)
        files, alone = (f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})" for rates in both)
        ratio = [f"{median(item.end_to_end) / median(base):.2f}"] if base else []
        memory = "" if item.mebibytes is None else f"{item.mebibytes:,.0f} MiB"
        difference = "" if item.difference is None else f"{item.difference:.1e}"
        cells.append([item.title, files, *ratio, alone, f"{p50:.0f}, {p95:.0f} ms", memory, difference])
    return aligned(cells, right=range(1, len(cells[0]) - 1))
