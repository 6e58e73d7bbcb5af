"""A scheduler that gathers requests of many callers into batches; independent of models and servers."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from chexpert_hf.errors import InputError

Source = TypeVar("Source")
Item = TypeVar("Item")
Result = TypeVar("Result")

Compute: TypeAlias = Callable[[list[Item], Hashable, bool], Sequence[Result]]
"""(items, kind, is_alone) -> a result for each item; `is_alone` tells that no other batch is running or waiting."""

STOPPING = "The server is stopping; try again in a minute."


class UnavailableError(InputError):
    """No request is taken now: too many are waiting, or the server is stopping."""


@dataclass(eq=False)
class _Request:
    """A request that `Scheduler.submit` took: its `kind`, the future `answer`, and the prepared `item`."""

    kind: Hashable  # only requests of equal kind share a batch
    answer: "Future[Any]" = field(default_factory=Future)  # which `submit` returns
    item: Any = None  # from `prepare`; None before


class Scheduler(Generic[Source, Item, Result]):
    """Prepares each request in a thread, and computes waiting requests in batches, the oldest first.

    A single request starts at once; no request waits for a batch to fill up.

    Args:
        prepare: Makes an item from a caller's source; several threads call it at once.
        compute: Functions that compute a batch, see `Compute`; they run in parallel, each on one batch at a time.
        readers: Executor that runs `prepare`; `close` shuts it down.
        workers: Executor with a thread for each function of `compute`; `close` shuts it down.
        batch_size: Largest batch. Waiting requests are divided evenly among the functions of `compute`.
        max_waiting: Number of unanswered requests at which `submit` may refuse more.
    """

    def __init__(
        self,
        prepare: Callable[[Source], Item],
        compute: Sequence[Compute[Item, Result]],
        readers: Executor,
        workers: Executor,
        *,
        batch_size: int = 8,
        max_waiting: int = 256,
    ) -> None:
        self._prepare, self._free, self._num_workers = prepare, list(compute), len(compute)
        self._readers, self._workers = readers, workers
        self._batch_size, self._max_waiting = batch_size, max_waiting
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._num_open, self._is_closed = 0, False

    def submit(self, source: Source, kind: Hashable = None, *, may_refuse: bool = False) -> "Future[Result]":
        """Queue a request; only requests of equal kind share a batch.

        Returns:
            A future with the result, or with the exception that was raised in preparing or computing the result. If the
            scheduler is closed while the request waits, the future has an UnavailableError.

        Raises:
            UnavailableError: If the scheduler is closed; with `may_refuse`, also if too many requests are waiting.
        """
        request = _Request(kind)
        with self._lock:
            self._expect_open()
            if may_refuse and (reason := self.refusal()):
                raise UnavailableError(reason)
            self._num_open += 1
            self._readers.submit(self._read, request, source)
        request.answer.add_done_callback(self._leave)
        return request.answer

    def refusal(self) -> str:
        """Return why `submit` may refuse a request now; empty if there is room."""
        if self._num_open < self._max_waiting:
            return ""
        return f"The server is busy, {self._num_open} requests are waiting; try again in a minute."

    def close(self) -> None:
        """Answer all waiting requests with UnavailableError, now; batches that are running are finished."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.answer.set_exception(UnavailableError(STOPPING))
        self._readers.shutdown(wait=False)
        self._workers.shutdown(wait=False)

    def _expect_open(self) -> None:
        if self._is_closed:
            raise UnavailableError(STOPPING)

    def _leave(self, _: "Future[Any]") -> None:
        with self._lock:
            self._num_open -= 1

    def _read(self, request: _Request, source: Source) -> None:
        if not request.answer.set_running_or_notify_cancel():
            return
        try:
            self._expect_open()  # before preparing an item that nobody would use
            request.item = self._prepare(source)
            with self._lock:
                self._expect_open()
                self._waiting.append(request)
                self._workers.submit(self._compute_next)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            request.answer.set_exception(error)

    def _compute_next(self) -> None:
        with self._lock:
            if not (batch := self._take_batch()):  # an earlier batch has taken the requests
                return
            is_alone = not self._waiting and len(self._free) == self._num_workers
            compute = self._free.pop()
        try:
            results = compute([request.item for request in batch], batch[0].kind, is_alone)
            for request, result in zip(batch, results, strict=True):
                request.answer.set_result(result)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers get it
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(error)
        finally:
            with self._lock:
                self._free.append(compute)

    def _take_batch(self) -> list[_Request]:
        size = min(self._batch_size, -(-len(self._waiting) // self._num_workers))
        batch = list(islice((one for one in self._waiting if one.kind == self._waiting[0].kind), size))
        for request in batch:
            self._waiting.remove(request)
        return batch
