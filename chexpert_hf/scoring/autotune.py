"""Time the runtimes and precisions that can be opened, choose the fastest, and keep the choice in the user's cache.

A choice is reused on the same CPU, with the same number of threads and library versions, for models of the same
architecture and input size, if the user asks for the same runtime and precision (such as "auto" and "fp32") as before.
So later runs on a machine, and all members of an ensemble, use the same runtime.
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

MIN_GAIN = 1.1
"""How many times as fast as fp32 a less exact precision must be to be chosen."""

_BATCH = 4  # images per timed call
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 3, 10, 1.5  # of timing; after the seconds, only the minimum of rounds is done


@dataclass(frozen=True)
class Choice:
    """The chosen runtime and precision, the speeds of the candidates, and the runtimes that were skipped."""

    runtime: RuntimeName
    precision: Precision
    images_per_second: Mapping[str, float]  # by names such as "openvino bf16"; empty if there was a single candidate
    skipped: Sequence[str]  # a line for each runtime that could not be opened, with the reason

    def note(self) -> str:
        """Return the speeds and skipped runtimes as text that is appended to `Runtime.reason`, a line for the user."""
        ordered = sorted(self.images_per_second.items(), key=lambda item: -item[1])
        timed = f"; timed: {', '.join(f'{name} {rate:.0f}' for name, rate in ordered)} images/s" if ordered else ""
        return timed + (f". Skipped: {'; '.join(self.skipped)}." if self.skipped else ".")


def choice_file(
    model: CheXpertForImageClassification, input_size: tuple[int, int], asked: tuple[RuntimeName, Precision]
) -> Path:
    """Return the path of the file in the user's cache that stores the choice for a model on this machine.

    The file may be missing.

    Args:
        model: The model. All models of its architecture share one file, whatever their weights.
        input_size: (height, width) in pixels.
        asked: Runtime and precision that the user asked for; at least one of them is "auto".
    """
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
    """Read an earlier choice of runtime and precision from a file; None if the file is missing or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rates = {str(name): float(rate) for name, rate in stored["images_per_second"].items()}
        taken = RuntimeName(stored["runtime"]), Precision(stored["precision"])
        return Choice(*taken, rates, tuple(map(str, stored["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(path: Path, choice: Choice) -> None:
    """Write a choice of runtime and precision to a file, for later runs; do nothing if that fails."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(choice), "processor": processor_name()})


def choose(opened: Mapping[Candidate, Runtime], shape: tuple[int, int, int], skipped: Sequence[str]) -> Choice:
    """Time the opened runtimes and choose the fastest; a single one is chosen without timing.

    A runtime in bf16, which is less exact, must be at least `MIN_GAIN` times as fast as those in fp32.

    Args:
        opened: The runtimes to choose from, by name and precision.
        shape: (channels, height, width) of the random images to time them on.
        skipped: A line for each runtime that could not be opened; stored in the choice.
    """
    if len(opened) == 1:
        return Choice(*next(iter(opened)), {}, skipped)
    rates = dict(zip(opened, images_per_second(list(opened.values()), shape), strict=True))
    named = {f"{name.value} {precision.value}": round(rate, 2) for (name, precision), rate in rates.items()}
    return Choice(*fastest(rates), named, skipped)


def fastest(rates: Mapping[Candidate, float]) -> Candidate:
    """Return the fastest candidate in fp32, or the fastest in bf16 if that is at least `MIN_GAIN` times as fast."""

    def rate_of(precision: Precision) -> float:
        return max((rate for (_, each), rate in rates.items() if each is precision), default=0)

    is_exact = rate_of(Precision.BF16) < MIN_GAIN * rate_of(Precision.FP32)
    taken = {each: rate for each, rate in rates.items() if (each[1] is Precision.FP32) == is_exact}
    return max(taken or rates, key=(taken or rates).__getitem__)


def images_per_second(runtimes: Sequence[Runtime], shape: tuple[int, int, int]) -> list[float]:
    """Time each runtime on random images of a shape (channels, height, width); return images per second.

    The runtimes take turns, batch by batch. A runtime's speed is that of its fastest batch.
    """
    pixel_values = torch.randn(_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    for runtime in runtimes:
        runtime(pixel_values)
    best, begin = [float("inf")] * len(runtimes), time.perf_counter()
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() - begin > _SECONDS:
            break
        for index, runtime in enumerate(runtimes):
            start = time.perf_counter()
            runtime(pixel_values)
            best[index] = min(best[index], time.perf_counter() - start)
    return [_BATCH / seconds for seconds in best]
