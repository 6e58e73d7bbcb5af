"""Scores files of radiographs, however many: decoded by threads ahead of the model, in order, in constant memory.

The scores of a file do not depend on the files around it or on where scoring was resumed. The last bits of a row depend
on the size of its batch, but not on its position or on the other rows. So batches are made by position in the list of
files, every batch is full, and a blank image replaces a file that cannot be read.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

import torch
from PIL import Image

from chexpert_hf.folders.score_table import GateMode
from chexpert_hf.gate import Verdict
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, source_of
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier, Prediction, Prepared
from chexpert_hf.scoring.saliency import overlay

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 8  # more threads wait for the disk or for each other
ROWS_SIDE_BY_SIDE = 4
"""Radiographs in a batch of a thread that has a processor to itself: more are slower there, and need more memory."""

_PNG_COMPRESSION = 1  # zlib's fastest: level 6 takes four times as long for files a tenth smaller

_Read: TypeAlias = tuple[RadiographFile, Prepared | RadiographError]


@dataclass(frozen=True)
class FileResult:
    """A file's prediction, or the reason why there is none, and the gate's verdict if it was asked for."""

    path: RadiographFile
    prediction: Prediction | None = None
    error: str | None = None
    gate: Verdict | None = None

    @property
    def is_no_radiograph(self) -> bool:
        """Whether it does not look like a chest radiograph to the gate."""
        return self.gate is not None and not self.gate.is_chest_radiograph


def score_files(
    classifier: CheXpertClassifier,
    files: Iterable[RadiographFile],
    *,
    saliency: bool = False,
    batch_size: int = BATCH_SIZE,
    gate: GateMode = GateMode.OFF,
) -> Iterator[FileResult]:
    """Reads and scores files, in order, taken as they are needed.

    A forward pass has at most `batch_size` radiographs; the last batch is filled up with blank images. `gate` says
    whether the model's gate is asked, and whether images that it refuses are scored. Any exception of a decoding thread
    but a RadiographError is raised in its file's place.
    """
    workers = classifier.side_by_side() if batch_size > 1 else [classifier]
    size = min(batch_size, ROWS_SIDE_BY_SIDE) if len(workers) > 1 else batch_size
    blank = classifier.prepare(Image.new("L", (32, 32)))

    def read(worker: CheXpertClassifier, file: RadiographFile) -> _Read:
        try:
            return file, worker.prepare(worker.read(source_of(file)), for_gate=gate is not GateMode.OFF)
        except RadiographError as error:
            return file, error

    def score(worker: CheXpertClassifier, batch: Sequence[_Read]) -> Iterator[FileResult]:
        radiographs = [blank if isinstance(image, RadiographError) else image for _, image in batch]
        radiographs += [blank] * (size - len(batch))
        predictions = worker.predict_prepared(radiographs, saliency=saliency, batch_size=size)
        for (file, image), prediction in zip(batch, predictions, strict=False):
            verdict = prediction.gate
            if isinstance(image, RadiographError):
                yield FileResult(file, error=image.reason)
            elif gate is GateMode.REFUSE and verdict is not None and not verdict.is_chest_radiograph:
                yield FileResult(file, error=verdict.reason, gate=verdict)
            else:
                yield FileResult(file, prediction, gate=verdict)

    if len(workers) == 1:
        reading = read_for(classifier, partial(read, classifier), files, batch_size=size)
        with closing(reading) as images:
            while batch := list(islice(images, size)):
                yield from score(classifier, batch)
        return
    free: SimpleQueue[CheXpertClassifier] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def read_and_score(batch: Sequence[RadiographFile]) -> list[FileResult]:
        worker = free.get()
        try:
            return list(score(worker, [read(worker, file) for file in batch]))
        finally:
            free.put(worker)

    files = iter(files)
    batches = iter(lambda: list(islice(files, size)), [])
    with closing(read_ahead(read_and_score, batches, threads=len(workers), ahead=2 * len(workers))) as results:
        for scored in results:
            yield from scored


def read_for(
    classifier: CheXpertClassifier, function: Callable[[T], R], items: Iterable[T], batch_size: int = BATCH_SIZE
) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order: beside a GPU, and on a CPU between the batches.

    On a CPU, the network's threads wait for each other at every layer: one that shares its core with a reader delays
    all of them.
    """
    if all(member.runtime.is_on_cpu for member in classifier.members):
        return read_in_waves(function, items, batch_size)
    return read_ahead(function, items, ahead=batch_size)


def read_in_waves(function: Callable[[T], R], items: Iterable[T], wave: int) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order, `wave` items at a time.

    A wave starts only after all results of the previous one have been consumed. An exception raised by `function` is
    raised before any result of its wave.
    """
    items = iter(items)
    with _executor(num_threads()) as executor:
        while batch := list(islice(items, wave)):
            yield from list(executor.map(function, batch))


def read_ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, ahead: int = 2 * BATCH_SIZE
) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order, at most `ahead` of them started or waiting to be taken.

    When the iterator is closed or an exception leaves it, items that have not started are dropped, and the others
    are waited for. Exceptions of `function` are raised in the place of their item.
    """
    items = iter(items)
    pending: deque[Future[R]] = deque()
    with _executor(threads or num_threads()) as executor:
        try:
            pending.extend(executor.submit(function, item) for item in islice(items, ahead))
            while pending:
                result = pending.popleft().result()
                pending.extend(executor.submit(function, item) for item in islice(items, 1))
                yield result
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _executor(threads: int) -> ThreadPoolExecutor:
    # Each thread that calls torch gets as many helpers as there are cores, which then compete with the model. This
    # setting holds for the thread alone.
    return ThreadPoolExecutor(threads, "radiographs", initializer=torch.set_num_threads, initargs=(1,))


def num_threads() -> int:
    """The number of decoding threads: as many as this process has processors, up to `MAX_THREADS`."""
    is_known = hasattr(os, "sched_getaffinity")  # on Linux: the processors that this process may use
    return min(len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1, MAX_THREADS)


def write_overlays(result: FileResult, folder: Path, observations: Iterable[str]) -> list[Path]:
    """Writes one PNG per observation into a folder, made if needed: the radiograph at its full size under the map.

    Returns the files; ValueError if the prediction has no maps.
    """
    if result.prediction is None or result.prediction.saliency is None:
        raise ValueError(f"{result.path} has no maps; ask for them with saliency=True.")
    folder.mkdir(parents=True, exist_ok=True)
    image = read_radiograph(source_of(result.path))
    written = []
    for observation in observations:  # one map at a time: at full size each takes megabytes
        written.append(folder / f"{observation}.png")
        picture = overlay(image, result.prediction.saliency[observation])
        picture.save(written[-1], compress_level=_PNG_COMPRESSION)
    return written


def overlay_folder(file: RadiographFile, common: Path, root: Path) -> Path:
    """A folder of its own for a file below `root`: the file's path below `common`, so that no two files meet."""
    member = file.name if isinstance(file, ArchiveMember) else ""
    return root / _path_on_disk(file).relative_to(common) / member


def common_folder(files: Sequence[RadiographFile]) -> Path:
    """The deepest folder, absolute, that all files are in."""
    return Path(os.path.commonpath({_path_on_disk(file).parent for file in files}))


def _path_on_disk(file: RadiographFile) -> Path:
    return Path(os.path.abspath(file.archive if isinstance(file, ArchiveMember) else file))
