"""A classifier for many callers at once: each call waits for its own answer, and calls that wait share a pass.

Whoever is alone gets a pass of one radiograph on all processors; while one runs, those that arrive wait together for
the next. Where the runtime computes side by side, there are several passes at a time, a processor each.

A row's bits must depend neither on who else is in the pass nor on how it is computed. Measured on a CPU they do not in
ONNX Runtime and OpenVINO, and they do in PyTorch: where a trial at the start finds that they do, every radiograph gets
a pass of its own.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from chexpert_hf.app.server.words import STOPPING
from chexpert_hf.errors import InputError
from chexpert_hf.folders.scoring import ROWS_SIDE_BY_SIDE, num_threads
from chexpert_hf.gate import Verdict
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.radiograph import RadiographError, RadiographSource
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction, Prepared

SHARED = 8
"""Radiographs that share a pass on all processors: 16 were no faster, and each waits for all."""

_TRIAL_SIDE = 64
_TRIAL_ROWS = 3


class Scorer(Protocol):
    """What endpoints ask of a model: `CheXpertClassifier`, or what stands in front of one."""

    @property
    def model(self) -> CheXpertForImageClassification: ...

    @property
    def members(self) -> Sequence["Scorer"]: ...

    @property
    def observations(self) -> tuple[str, ...]: ...

    @property
    def operating_points(self) -> dict[str, float]: ...

    def predict(self, source: RadiographSource, /, *, saliency: bool = ...) -> Prediction: ...


class StoppedError(InputError):
    """The server is stopping and answers nobody any more."""


class SharedClassifier(CheXpertClassifier):
    """A classifier whose `predict` may be called by any number of threads.

    Files are read by as many threads as there are processors; the network is run by one, or by as many as it computes
    side by side for. `close` ends them.

    Args:
        classifier: What computes; not to be used by others meanwhile.
        batch_size: Radiographs that share a pass at most.
    """

    def __init__(self, classifier: CheXpertClassifier, *, batch_size: int = SHARED) -> None:
        vars(self).update(vars(classifier))  # all that it is, whatever that comes to be
        self._classifier = classifier
        self._workers = [classifier]
        self.batch_size = 1
        if batch_size > 1 and rows_are_independent(classifier, batch_size):
            self.batch_size = batch_size
            if len(workers := classifier.side_by_side()) > 1 and scores_are_equal(classifier, workers[0]):
                self._workers = [*workers]
                self.batch_size = min(batch_size, ROWS_SIDE_BY_SIDE)
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._num_running = 0
        self._is_closed = False
        # Each thread that calls torch gets helpers of its own, as many as there are cores; see folders/scoring.py.
        self._readers = ThreadPoolExecutor(num_threads(), "read", initializer=torch.set_num_threads, initargs=(1,))
        self._networks = [
            threading.Thread(target=self._run, args=(worker,), name="network", daemon=True) for worker in self._workers
        ]
        for network in self._networks:
            network.start()

    def _each(
        self, inputs: Iterable[RadiographSource], saliency: bool, batch_size: int
    ) -> Iterator[Prediction | RadiographError]:
        """Score as `CheXpertClassifier` does, bit for bit; the gate runs while the network computes.

        Raises:
            StoppedError: If the server is stopping.
        """
        for source in inputs:
            request = _Request(saliency)
            verdict = self._submit(request, source)
            try:
                yield replace(request.future.result(), gate=verdict.result())
            except RadiographError as error:
                yield error

    def predict(self, *inputs: Any, **options: Any) -> Any:
        """As of `CheXpertClassifier`, but errors name no file, since no answer and no log may."""
        try:
            results = super().predict(*inputs, **options)
        except RadiographError as error:
            error.name = ""
            raise
        for result in results if isinstance(results, list) else [results]:
            if isinstance(result, RadiographError):
                result.name = ""
        return results

    def read(self, source: RadiographSource) -> Image.Image:
        """As the classifier does."""
        return self._classifier.read(source)

    @property
    def operating_points(self) -> dict[str, float]:
        """Those of the classifier."""
        return self._classifier.operating_points

    def close(self) -> None:
        """Answers all who wait with StoppedError, now; a pass that runs ends first."""
        with self._changed:
            self._is_closed = True
            waiting = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for request in waiting:
            request.fail(StoppedError(STOPPING))
        self._readers.shutdown(wait=False, cancel_futures=False)

    def _submit(self, request: "_Request", source: RadiographSource) -> "Future[Verdict | None]":
        try:
            return self._readers.submit(self._read_for, request, source)
        except RuntimeError:  # the pool is shut down
            raise StoppedError(STOPPING) from None

    def _read_for(self, request: "_Request", source: RadiographSource) -> Verdict | None:
        """Read a radiograph and hand it to the network; returns the gate's verdict."""
        try:
            self._expect_open()  # before work that nobody would get anything of
            prepared = self._classifier.prepare(self.read(source), for_gate=True)
            request.prepared = [replace(prepared, gate_input=None)]
            with self._changed:
                self._expect_open()
                self._waiting.append(request)
                self._changed.notify()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller, who waits
            request.fail(error)
            return None
        return self._classifier.verdicts([prepared])[0]

    def _expect_open(self) -> None:
        if self._is_closed:
            raise StoppedError(STOPPING)

    def _run(self, worker: CheXpertClassifier) -> None:
        if len(self._workers) > 1:
            torch.set_num_threads(1)  # here only, as in the threads that read
        while batch := self._next_batch():
            requests, is_alone = batch
            computing = self._classifier if is_alone else worker
            images = [image for request in requests for image in request.prepared]
            try:
                predictions = computing.predict_prepared(images, saliency=requests[0].saliency, batch_size=len(images))
                for request, prediction in zip(requests, list(predictions), strict=True):
                    request.future.set_result(prediction)
            except BaseException as error:  # noqa: BLE001 - the thread must live on, and each caller be told
                for request in requests:
                    request.fail(error)
            finally:
                with self._changed:
                    self._num_running -= 1

    def _next_batch(self) -> "tuple[list[_Request], bool] | None":
        """Those who wait for the same as who has waited longest, and whether nobody else has a pass; None at the end.

        Who waits is divided among the threads, so that none takes all while another has nothing to do.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            size = min(self.batch_size, -(-len(self._waiting) // len(self._workers)))
            kind = self._waiting[0].saliency
            batch = list(islice((one for one in self._waiting if one.saliency is kind), size))
            taken = {id(one) for one in batch}
            self._waiting = deque(one for one in self._waiting if id(one) not in taken)
            is_alone = not self._waiting and not self._num_running
            self._num_running += 1
            return batch, is_alone


class _Request:
    """One radiograph on its way: what its caller waits for."""

    def __init__(self, saliency: bool) -> None:
        self.future: Future[Prediction] = Future()
        self.saliency = saliency
        self.prepared: Sequence[Prepared] = ()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def rows_are_independent(classifier: CheXpertClassifier, batch_size: int) -> bool:
    """Whether a radiograph's scores have the same bits alone, in twos, in threes and in full passes, by trial.

    Random gray levels, since a network saturates on a blank image and rounding then has nothing to show.
    """
    images = _trial_images(classifier, max(batch_size, _TRIAL_ROWS))
    alone = _scores_alone(classifier, images[:_TRIAL_ROWS])
    for size in (2, 3, batch_size):
        together = [one.probabilities for one in classifier.predict_prepared(images[:size], batch_size=size)]
        if together[:_TRIAL_ROWS] != alone[:size]:
            return False
    return True


def scores_are_equal(one: CheXpertClassifier, other: CheXpertClassifier) -> bool:
    """Whether two classifiers of one model give scores of the same bits, by trial."""
    images = _trial_images(one, _TRIAL_ROWS)
    together = [row.probabilities for row in other.predict_prepared(images, batch_size=_TRIAL_ROWS)]
    return _scores_alone(one, images) == _scores_alone(other, images) == together


def _trial_images(classifier: CheXpertClassifier, count: int) -> list[Prepared]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, _TRIAL_SIDE, _TRIAL_SIDE), dtype=np.uint8)
    return [classifier.prepare(Image.fromarray(image)) for image in pixels]


def _scores_alone(classifier: CheXpertClassifier, images: Sequence[Prepared]) -> list[Mapping[str, float]]:
    return [next(classifier.predict_prepared([image], batch_size=1)).probabilities for image in images]
