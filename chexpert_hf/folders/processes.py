"""Reads and prepares files in worker processes, which share no interpreter lock: in order, in constant memory.

If a process dies, because a decoder crashes or memory runs out, only the file at fault is lost. The files without
results are read again one by one in a second process. If the second process dies, too, each of the files that were sent
to it is read in a process of its own; a file whose own process dies is reported as unreadable.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.radiographs.grey_levels import RadiographError, naming
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.preparation import Preparation, Prepared

_CHUNK = 16  # files sent to a process at a time: fewer take more messages, more delay the first batch
_AHEAD = 2  # chunks for each process: one being read and one waiting

_SHARED_MEMORY = "/dev/shm"  # on Linux; 64 MB in a Docker container
_KILLED = "The process that read this file was killed, expected an image that can be decoded; export it again."

_preparation: Preparation  # these three are set in a worker process by `_start`
_for_gate = _by_memory = False


class ReadFile(NamedTuple):
    """A file with its prepared radiograph, or with the RadiographError that says why it cannot be read."""

    file: RadiographFile
    image: Prepared | RadiographError

    def prepared(self) -> Prepared:
        """Return the prepared radiograph, or raise the RadiographError with the file's name."""
        if isinstance(self.image, Prepared):
            return self.image
        with naming(self.file):
            raise self.image


_Chunk: TypeAlias = tuple[RadiographFile, ...]
_Packed: TypeAlias = tuple[list[Any], list[Prepared | RadiographError]]
"""A worker's results for a chunk: grey levels, stacked for each member; and radiographs without them, or errors."""


@dataclass(frozen=True)
class ReadingProcesses:
    """Reads and prepares files in `processes` worker processes, which each call of `read` starts and ends.

    `preparation` reads a file and makes the model's input from it. With `for_gate`, the processes also ask the gate
    whether an image is a chest radiograph. Radiographs come from the processes in shared memory. `waiting` is how many
    radiographs, at most, the caller keeps until they are scored. The check that shared memory is large enough counts
    these, too.
    """

    preparation: Preparation
    processes: int
    for_gate: bool = False
    waiting: int = 0

    def read(self, files: Iterable[RadiographFile]) -> Generator[ReadFile, None, None]:
        """Yield a ReadFile for each file, in order; exceptions other than RadiographError are raised.

        Raises:
            InputError: If no process can be started.
        """
        files = iter(files)
        chunks = iter(lambda: tuple(islice(files, _CHUNK)), ())
        while lost := (yield from self._run(chunks, self.processes)):
            yield from self._read_carefully(chain.from_iterable(lost))

    def _read_carefully(self, files: Iterator[RadiographFile]) -> Generator[ReadFile, None, None]:
        chunks = ((file,) for file in files)
        while lost := (yield from self._run(chunks, 1)):
            for chunk in lost:
                if (yield from self._run(iter([chunk]), 1)):
                    yield ReadFile(chunk[0], RadiographError(_KILLED))

    def _run(self, chunks: Iterator[_Chunk], processes: int) -> Generator[ReadFile, None, list[_Chunk]]:
        """Yield a ReadFile for each file of the chunks; if a process dies, return the chunks without results."""
        pending: deque[tuple[_Chunk, Future[_Packed]]] = deque()
        arguments = (self.preparation, self.for_gate, self._fits_shared_memory(processes))
        context = _KillableContext(_context())
        pool = ProcessPoolExecutor(processes, cast(BaseContext, context), _start, arguments)
        try:
            _expect_start(pool)
            while True:
                for chunk in islice(chunks, _AHEAD * processes - len(pending)):
                    pending.append((chunk, Future()))  # counts as lost if it cannot be submitted
                    pending[-1] = (chunk, pool.submit(_read_chunk, chunk))
                if not pending:
                    return []
                packed = pending[0][1].result()
                chunk, _ = pending.popleft()
                yield from map(ReadFile, chunk, _unpacked(packed))
        except BrokenProcessPool:
            context.kill()
            return [chunk for chunk, _ in pending]
        finally:
            pool.shutdown(cancel_futures=True)

    def _fits_shared_memory(self, processes: int) -> bool:
        """Whether shared memory has room for all radiographs that may be in it at one time; True except on Linux.

        A process that writes to full shared memory would be killed.
        """
        if not sys.platform.startswith("linux"):
            return True
        sides = [processor.output_size for processor in self.preparation.processors]
        num_bytes = sum(height * width for height, width in sides) * np.dtype(np.float32).itemsize
        status = os.statvfs(_SHARED_MEMORY)
        images = 2 * _AHEAD * processes * _CHUNK + self.waiting
        return images * num_bytes < status.f_bavail * status.f_frsize


class _KillableContext:
    """A context of multiprocessing that remembers its processes, so that `kill` can end all of them.

    If a process dies, ProcessPoolExecutor waits for its other processes: forever, if one has just been started.
    """

    def __init__(self, context: BaseContext) -> None:
        self._context, self._processes = context, list[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *args: Any, **options: Any) -> Any:  # noqa: N802 - multiprocessing's name
        self._processes.append(self._context.Process(*args, **options))  # type: ignore[attr-defined]
        return self._processes[-1]

    def kill(self) -> None:
        for process in self._processes:
            if process.pid is not None:
                process.kill()


def _context() -> Any:
    """Return multiprocessing's context "forkserver", or "spawn" if there is none; "fork" could deadlock."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _expect_start(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise InputError(
            "The processes that read images cannot be started. Call from below `if __name__ == '__main__':` in a "
            "script, or read in threads: --workers 0."
        ) from error


# The functions below run in a worker process.


def _start(preparation: Preparation, for_gate: bool, by_memory: bool) -> None:
    global _preparation, _for_gate, _by_memory
    _preparation, _for_gate, _by_memory = preparation, for_gate, by_memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _read_chunk(files: _Chunk) -> _Packed:
    results = [read_one(_preparation, file, _for_gate).image for file in files]
    radiographs = [one for one in results if isinstance(one, Prepared)]
    stacked = [torch.stack(grays) for grays in zip(*(one.gray for one in radiographs), strict=True)]
    # The gate takes as long as decoding, so it runs here, not in the parent.
    verdicts = iter(_preparation.verdicts(radiographs))
    bare = [
        one if isinstance(one, RadiographError) else replace(one, gray=(), gate_input=None, verdict=next(verdicts))
        for one in results
    ]
    return (stacked if _by_memory else [grays.numpy() for grays in stacked]), bare


def read_one(reader: Preparation | CheXpertClassifier, file: RadiographFile, for_gate: bool) -> ReadFile:
    """Read one file and resize its radiograph; the result holds the radiograph or the RadiographError.

    With `for_gate`, the input of the gate is prepared, too.
    """
    try:
        return ReadFile(file, reader.prepare(reader.read(file), for_gate=for_gate))
    except RadiographError as error:
        return ReadFile(file, error)


# The functions below run in the parent.


def _unpacked(packed: _Packed) -> Iterator[Prepared | RadiographError]:
    stacked, bare = packed
    rows: Iterator[Sequence[Tensor]] = zip(*map(torch.as_tensor, stacked), strict=True)
    return (one if isinstance(one, RadiographError) else replace(one, gray=tuple(next(rows))) for one in bare)
