"""Reads and prepares files ahead of a model, in order: in threads of this process or in other processes.

Threads start at once, but share the interpreter lock: eight threads read about as many files a second as two processes.
That is more than a network on a CPU can score; a network on a GPU can score several times as many.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal, TypeAlias, TypeVar

import torch

from chexpert_hf.folders.processes import ReadFile, ReadingProcesses, read_one
from chexpert_hf.machine import num_processors
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 8  # more threads wait for the disk or for each other
MAX_PROCESSES = 32
FILES_FOR_PROCESSES = 4000  # with fewer, threads finish before processes have imported PyTorch and caught up

Workers: TypeAlias = int | Literal["auto"]


def read_prepared(
    classifier: CheXpertClassifier,
    files: Iterable[RadiographFile],
    *,
    for_gate: bool = False,
    batch_size: int = BATCH_SIZE,
    workers: Workers = 0,
) -> Generator[ReadFile, None, None]:
    """Yield a ReadFile for each file, in order, with the prepared radiograph or a RadiographError.

    Args:
        classifier: Its `read` and `prepare` are applied to the files.
        files: The iterable is read only as far as files are needed.
        for_gate: Whether to prepare the input of the classifier's gate, too. Reading processes (but not threads) then
            also ask the gate, so that each prepared radiograph holds the gate's verdict.
        batch_size: Radiographs per forward pass, which sets how many are read ahead.
        workers: Number of processes; 0 for threads; "auto" for a process per processor if the network is on a GPU and
            there are at least `FILES_FOR_PROCESSES` files, else threads. A script that starts processes needs a
            `__main__` guard.
    """
    if processes := num_processes(classifier, files, workers):
        waiting = 2 * batch_size
        return ReadingProcesses(classifier.preparation, processes, for_gate, waiting).read(files)
    return read_for(classifier, partial(read_one, classifier, for_gate=for_gate), files, batch_size)


def num_processes(classifier: CheXpertClassifier, files: Iterable[RadiographFile], workers: Workers) -> int:
    """Return the number of reading processes that `read_prepared` uses; 0 for threads."""
    if workers != "auto":
        return min(workers, MAX_PROCESSES)
    if classifier.is_on_cpu or not isinstance(files, Sized) or len(files) < FILES_FOR_PROCESSES:
        return 0
    return min(num_processors(), MAX_PROCESSES)


def read_for(
    classifier: CheXpertClassifier, function: Callable[[T], R], items: Iterable[T], batch_size: int = BATCH_SIZE
) -> Generator[R, None, None]:
    """Map `function` over `items` in threads, in order, at times that do not slow the classifier's network down.

    With a network on a GPU, items are read while it computes. With a network on a CPU, items are read between its
    batches only: the network's threads wait for each other at every layer, so a thread that shares its core with a
    reading thread would delay all of them.
    """
    if classifier.is_on_cpu:
        return read_in_waves(function, items, batch_size)
    return read_ahead(function, items, ahead=batch_size)


def read_in_waves(function: Callable[[T], R], items: Iterable[T], wave: int) -> Generator[R, None, None]:
    """Map `function` over `items` in threads, in order, `wave` items at a time.

    A wave starts only after all results of the previous one have been consumed. An exception raised by `function` is
    raised before any result of its wave.
    """
    with _executor(num_threads()) as executor:
        for batch in batched(items, wave):
            yield from list(executor.map(function, batch))


def read_ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, ahead: int = 2 * BATCH_SIZE
) -> Generator[R, None, None]:
    """Map `function` over `items` in threads, in order, with at most `ahead` items handed out but not yet yielded.

    An exception of `function` is raised in the place of its item's result. After an exception, or if the generator is
    closed, items that have not started are dropped, and those in progress are waited for.
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
    # Otherwise each thread that calls torch starts a thread per core, and these compete with the model. The setting
    # applies to the calling thread only.
    return ThreadPoolExecutor(threads, "radiographs", initializer=torch.set_num_threads, initargs=(1,))


def num_threads() -> int:
    """Return the number of reading threads: one per processor that this process may use, at most `MAX_THREADS`."""
    return min(num_processors(), MAX_THREADS)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])
