"""Scores files of radiographs, however many: decoded by threads ahead of the model, in order, in constant memory.

The scores of a file are the same whatever stands beside it and wherever scoring was taken up. The last bits of a row
depend on how many rows go through the network at once, and, measured on a CPU, neither on its place nor on what the
others hold. So batches are made by position in the list of files, every batch is full, and a file that cannot be read
leaves its place to a blank image.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

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

# More threads than this wait for the disk or for each other.
MAX_THREADS = 8

# zlib's fastest: overlays are looked at once, and level 6 takes four times as long for files a tenth smaller.
_PNG_COMPRESSION = 1

ROWS_SIDE_BY_SIDE = 4
"""Radiographs in a pass of a thread that has a processor to itself: more are slower there, and need more memory."""

_BLANK_SIDE = 32


@dataclass(frozen=True)
class FileResult:
    """A file's prediction, or the reason why there is none, and the gate's verdict if it was asked."""

    path: RadiographFile
    prediction: Prediction | None = None
    error: str | None = None
    gate: Verdict | None = None

    @property
    def is_no_radiograph(self) -> bool:
        """Whether the gate says that it is no chest radiograph."""
        return self.gate is not None and not self.gate.is_chest_radiograph


def score_files(
    classifier: CheXpertClassifier,
    files: Iterable[RadiographFile],
    *,
    saliency: bool = False,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    gate: GateMode = GateMode.OFF,
) -> Iterator[FileResult]:
    """Reads and scores files, in order.

    Args:
        classifier: The model.
        files: As `find_radiographs` gives them; taken as they are needed.
        saliency: Whether to compute the maps.
        batch_size: Radiographs that go through the network at once, at most; the last batch is filled up with blank
            images.
        threads: That decode; as many as there are processors, up to `MAX_THREADS`, if None. Where the network computes
            side by side, each of its threads decodes its own files.
        gate: Whether the model's gate is asked, and whether images that it refuses are scored.

    Raises:
        Exception: What a decoding thread raised, if it is not a RadiographError, in its file's place.
    """
    workers = classifier.side_by_side() if batch_size > 1 else [classifier]
    if len(workers) > 1:
        yield from _score_side_by_side(workers, files, saliency, min(batch_size, ROWS_SIDE_BY_SIDE), gate)
        return
    waiting: deque[FileResult | None] = deque()
    read = read_for(
        classifier, lambda file: _read(classifier, file, gate), files, threads=threads, batch_size=batch_size
    )
    with closing(read) as images:
        blank = classifier.prepare(Image.new("L", (_BLANK_SIDE, _BLANK_SIDE)))
        batches = _full_batches(images, blank, waiting, batch_size)
        predictions = classifier.predict_prepared(batches, saliency=saliency, batch_size=batch_size)
        yield from _results(predictions, waiting, gate)


def _score_side_by_side(
    workers: Sequence[CheXpertClassifier],
    files: Iterable[RadiographFile],
    saliency: bool,
    batch_size: int,
    gate: GateMode,
) -> Iterator[FileResult]:
    """Each worker reads and scores a batch by itself: on two cores 11 % faster than reading between two batches."""
    blank = workers[0].prepare(Image.new("L", (_BLANK_SIDE, _BLANK_SIDE)))
    free: SimpleQueue[CheXpertClassifier] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def score(batch: Sequence[RadiographFile]) -> list[FileResult]:
        worker = free.get()
        try:
            waiting: deque[FileResult | None] = deque()
            prepared = _full_batches([_read(worker, file, gate) for file in batch], blank, waiting, batch_size)
            predictions = worker.predict_prepared(prepared, saliency=saliency, batch_size=batch_size)
            return list(_results(predictions, waiting, gate))
        finally:
            free.put(worker)

    files = iter(files)
    batches = iter(lambda: list(islice(files, batch_size)), [])
    with closing(read_ahead(score, batches, threads=len(workers), ahead=2 * len(workers))) as results:
        for batch in results:
            yield from batch


def _results(
    predictions: Iterable[Prediction], waiting: deque[FileResult | None], gate: GateMode
) -> Iterator[FileResult]:
    """What `_full_batches` left in `waiting`, with its prediction."""
    for prediction in predictions:
        result = waiting.popleft()
        if result is not None:
            yield result if result.error is not None else _scored(result.path, prediction, gate)


def _scored(path: RadiographFile, prediction: Prediction, gate: GateMode) -> FileResult:
    result = FileResult(path, prediction, gate=prediction.gate)
    if gate is GateMode.REFUSE and result.gate is not None and result.is_no_radiograph:
        return FileResult(path, error=result.gate.reason, gate=result.gate)
    return result


def _full_batches(
    images: Iterable[tuple[RadiographFile, Prepared | RadiographError]],
    blank: Prepared,
    waiting: deque[FileResult | None],
    batch_size: int,
) -> Iterator[Prepared]:
    """A radiograph for every file and for what is missing to a full batch; what each is goes to `waiting`."""
    count = 0
    for file, image in images:
        count += 1
        waiting.append(FileResult(file, error=image.reason if isinstance(image, RadiographError) else None))
        yield blank if isinstance(image, RadiographError) else image
    for _ in range(-count % batch_size):
        waiting.append(None)
        yield blank


def _read(
    classifier: CheXpertClassifier, file: RadiographFile, gate: GateMode
) -> tuple[RadiographFile, Prepared | RadiographError]:
    try:
        return file, classifier.prepare(classifier.read(source_of(file)), for_gate=gate is not GateMode.OFF)
    except RadiographError as error:
        return file, error


def read_for(
    classifier: CheXpertClassifier,
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order: beside a GPU, and on a CPU between the batches.

    A network that has all cores of a CPU has threads that wait for each other at every layer, and one that shares its
    core with a reader holds up all: reading between the batches was 3 to 10 % faster than reading beside them.
    """
    if all(member.runtime.is_on_cpu for member in classifier.members):
        return read_in_waves(function, items, threads=threads, wave=batch_size)
    return read_ahead(function, items, threads=threads, ahead=batch_size)


def read_in_waves(
    function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, wave: int
) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order; the next `wave` of them begins when the last one is taken.

    Args:
        function: Its exceptions are raised before anything of their wave is given out.
        items: Taken as they are needed.
        threads: As many as there are processors, up to `MAX_THREADS`, if None.
        wave: How many items are begun or done at once.
    """
    items = iter(items)
    with _executor(threads) as executor:
        while batch := list(islice(items, wave)):
            yield from list(executor.map(function, batch))


def read_ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, ahead: int = 2 * BATCH_SIZE
) -> Generator[R, None, None]:
    """Maps `function` over `items` in threads, in order, with a bounded number of results that nobody has taken yet.

    When the iterator is closed or an exception leaves it, what has not begun is dropped, and what has begun is waited
    for, which is one image for each thread.

    Args:
        function: Its exceptions are raised in the place of their item.
        items: Taken as they are needed.
        threads: As many as there are processors, up to `MAX_THREADS`, if None.
        ahead: How many items are begun or done at once.
    """
    items = iter(items)
    pending: deque[Future[R]] = deque()
    with _executor(threads) as executor:
        try:
            pending.extend(executor.submit(function, item) for item in islice(items, ahead))
            while pending:
                result = pending.popleft().result()
                pending.extend(executor.submit(function, item) for item in islice(items, 1))
                yield result
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _executor(threads: int | None) -> ThreadPoolExecutor:
    # Each thread that calls torch gets helpers of its own, as many as there are cores, which then spin beside the
    # model: without them a model in PyTorch was 30 % faster. It is said in the thread and holds for it alone.
    return ThreadPoolExecutor(threads or num_threads(), "radiographs", initializer=torch.set_num_threads, initargs=(1,))


def num_threads() -> int:
    """How many threads decode: as many as this process has processors, up to `MAX_THREADS`."""
    is_told = hasattr(os, "sched_getaffinity")  # on Linux: the processors that this process may use
    return min(len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1, MAX_THREADS)


def write_overlays(result: FileResult, folder: Path, observations: Iterable[str]) -> list[Path]:
    """Writes one PNG per observation into a folder: the radiograph at its full size under the map.

    Args:
        result: With a prediction that has maps.
        folder: Made if it is not there.
        observations: Which maps.

    Returns:
        The files.

    Raises:
        ValueError: If the prediction has no maps.
    """
    if result.prediction is None or result.prediction.saliency is None:
        raise ValueError(f"{result.path} has no maps; ask for them with saliency=True.")
    folder.mkdir(parents=True, exist_ok=True)
    image = read_radiograph(source_of(result.path))
    written = []
    for observation in observations:
        path = folder / f"{observation}.png"
        overlay(image, result.prediction.saliency[observation]).save(path, compress_level=_PNG_COMPRESSION)
        written.append(path)
    return written


def overlay_folder(file: RadiographFile, common: Path, root: Path) -> Path:
    """A folder of its own for a file below `root`: the file's path below `common`, so that no two files meet."""
    return root / Path(os.path.abspath(_on_disk(file))).relative_to(common) / _in_archive(file)


def common_folder(files: Sequence[RadiographFile]) -> Path:
    """The deepest folder, absolute, that all files are in."""
    common = last = os.path.dirname(os.path.abspath(_on_disk(files[0])))
    for file in files:
        folder = os.path.dirname(os.path.abspath(_on_disk(file)))
        if folder != last:
            common, last = os.path.commonpath([common, folder]), folder
    return Path(common)


def _on_disk(file: RadiographFile) -> str:
    return file.archive if isinstance(file, ArchiveMember) else str(file)


def _in_archive(file: RadiographFile) -> str:
    return file.name if isinstance(file, ArchiveMember) else ""
