"""Chooses the fastest runtime and precision by timing them, and keeps the choice in the user's cache.

The choice is kept for a processor, the versions of the libraries and an architecture with its input size, so that the
same machine always chooses the same, and so do the members of an ensemble.
"""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import torch

from chexpert_hf.files import write_json
from chexpert_hf.machine import num_processors, processor_name
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import Precision, RuntimeName
from chexpert_hf.scoring.graphs.conversion import PACKAGES, cache_folder
from chexpert_hf.scoring.graphs.sessions import Runtime

Candidate: TypeAlias = tuple[RuntimeName, Precision]

LEAST_GAIN = 1.1
"""How much faster a less exact precision must be to be chosen."""

_BATCH = 4
_FEWEST_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 10, 1.5


@dataclass(frozen=True)
class Choice:
    """A runtime and precision, the speeds by which they were chosen, and the runtimes that could not be opened."""

    runtime: RuntimeName
    precision: Precision
    images_per_second: Mapping[str, float]
    skipped: Sequence[str]

    def note(self) -> str:
        """The reason for the choice, to follow the runtime's name."""
        ordered = sorted(self.images_per_second.items(), key=lambda item: -item[1])
        timed = f"; timed: {', '.join(f'{name} {rate:.0f}' for name, rate in ordered)} images/s" if ordered else ""
        return timed + (f". Skipped: {'; '.join(self.skipped)}." if self.skipped else ".")


def choice_file(
    model: CheXpertForImageClassification, input_size: tuple[int, int], asked: tuple[RuntimeName, Precision]
) -> Path:
    """The file of the cache for the choice of a model on this machine, where `asked` has "auto" in it."""
    machine = [
        processor_name(),
        platform.machine(),
        num_processors(),
        torch.get_num_threads(),
        graph_files.versions_of(PACKAGES),
    ]
    key = json.dumps([machine, model.config.architecture, list(input_size), list(asked)], sort_keys=True)
    return cache_folder() / "choices" / f"{sha256(key.encode()).hexdigest()[:32]}.json"


def recall(path: Path) -> Choice | None:
    """The choice in a file; None without a file, or if it is damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rates = {str(name): float(rate) for name, rate in stored["images_per_second"].items()}
        taken = RuntimeName(stored["runtime"]), Precision(stored["precision"])
        return Choice(*taken, rates, tuple(map(str, stored["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(path: Path, choice: Choice) -> None:
    """Writes a choice for `recall`; without a writable cache nothing is kept."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(choice), "processor": processor_name()})


def choose(opened: Mapping[Candidate, Runtime], shape: tuple[int, int, int], skipped: Sequence[str]) -> Choice:
    """Times runtimes on images of a shape (channels, height, width), unless there is only one, and takes the fastest.

    `skipped` says what else there might have been, and why it was not opened.
    """
    if len(opened) == 1:
        return Choice(*next(iter(opened)), {}, skipped)
    rates = dict(zip(opened, images_per_second(list(opened.values()), shape), strict=True))
    named = {f"{name.value} {precision.value}": round(rate, 2) for (name, precision), rate in rates.items()}
    return Choice(*fastest(rates), named, skipped)


def fastest(rates: Mapping[Candidate, float]) -> Candidate:
    """The candidate with the most images per second; a less exact precision must be `LEAST_GAIN` times as fast."""

    def rate_of(precision: Precision) -> float:
        return max((rate for (_, each), rate in rates.items() if each is precision), default=0)

    is_exact = rate_of(Precision.BF16) < LEAST_GAIN * rate_of(Precision.FP32)
    taken = {each: rate for each, rate in rates.items() if (each[1] is Precision.FP32) == is_exact}
    return max(taken or rates, key=(taken or rates).__getitem__)


def images_per_second(runtimes: Sequence[Runtime], shape: tuple[int, int, int]) -> list[float]:
    """The speed of each runtime at images of a shape (channels, height, width): the best of a few batches in turns."""
    pixel_values = torch.randn(_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    for runtime in runtimes:
        runtime(pixel_values)
    best, begin = [float("inf")] * len(runtimes), time.perf_counter()
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - begin > _SECONDS:
            break
        for index, runtime in enumerate(runtimes):
            start = time.perf_counter()
            runtime(pixel_values)
            best[index] = min(best[index], time.perf_counter() - start)
    return [_BATCH / seconds for seconds in best]
