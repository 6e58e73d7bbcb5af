"""A classifier for many callers at once, whose requests share batches.

A score must be the same to the last bit whatever other images are in its batch. A trial at the start tests this:
ONNX Runtime and OpenVINO pass. If the trial fails, as in PyTorch, every radiograph gets a batch of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from chexpert_hf.app.server.scheduler import Compute, Scheduler
from chexpert_hf.folders.readers import num_threads
from chexpert_hf.folders.scoring import ROWS_SIDE_BY_SIDE
from chexpert_hf.radiographs.archives import ArchiveMember, source_of
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographError, RadiographSource
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier, Prediction
from chexpert_hf.scoring.preparation import Prepared

MAX_WAITING = 256

_BATCH_SIZE = 8  # 16 were no faster, and each radiograph waits for its whole batch
_TRIAL_SIDE = 64
_TRIAL_ROWS = 3


Source: TypeAlias = RadiographSource | ArchiveMember


class SharedClassifier(CheXpertClassifier):
    """A classifier that any number of threads may call; `close` ends its own threads.

    Args:
        classifier: The wrapped classifier, which computes the scores; it must not be used directly any more.
        max_waiting: Number of unanswered radiographs at which the scheduler may refuse more.

    Attributes:
        scheduler: Gathers the requests of `predict` into batches. Requests with maps and requests without maps do not
            share a batch.
    """

    def __init__(self, classifier: CheXpertClassifier, *, max_waiting: int = MAX_WAITING) -> None:
        runtime, gate = classifier.runtime, classifier.gate
        super().__init__(classifier.model, classifier.processor, runtime=runtime, gate=gate)
        self.members, self._classifier = classifier.members, classifier
        workers, batch_size = [classifier], 1
        if gives_same_bits(classifier, classifier, (2, _TRIAL_ROWS, _BATCH_SIZE)):
            batch_size = _BATCH_SIZE
            side_by_side = classifier.side_by_side()
            if len(side_by_side) > 1 and gives_same_bits(classifier, side_by_side[0], (1, _TRIAL_ROWS)):
                workers, batch_size = [*side_by_side], ROWS_SIDE_BY_SIDE
        self.scheduler: Scheduler[Source, Prepared, Prediction] = Scheduler(
            self._read_and_prepare,
            [_compute_by(worker, classifier) for worker in workers],
            _pool(num_threads(), "read"),
            _pool(len(workers), "compute"),
            batch_size=batch_size,
            max_waiting=max_waiting,
        )

    @property
    def operating_points(self) -> dict[str, float]:
        return self._classifier.operating_points

    def read(self, source: Source) -> Radiograph:
        return self._classifier.read(source)

    def prepare(self, radiograph: Radiograph | Image.Image, *, for_gate: bool = False) -> Prepared:
        return self._classifier.prepare(radiograph, for_gate=for_gate)

    def predict_prepared(
        self, radiographs: Iterable[Prepared], *, saliency: bool = False, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Score radiographs from `prepare` now, with the wrapped classifier and not through the scheduler.

        No other caller's radiographs are in the same batches.
        """
        return self._classifier.predict_prepared(radiographs, saliency=saliency, batch_size=batch_size)

    def side_by_side(self) -> Sequence[CheXpertClassifier]:
        return self._classifier.side_by_side()

    def close(self) -> None:
        """Answer all waiting requests with UnavailableError, and end this object's threads."""
        self.scheduler.close()

    def _each(
        self, inputs: Iterable[Source], saliency: bool, batch_size: int
    ) -> Iterator[Prediction | RadiographError]:
        for source in inputs:
            try:
                yield self.scheduler.submit(source, saliency).result()
            except RadiographError as error:
                yield error

    def predict(self, *inputs: Any, **options: Any) -> Any:
        """Predict like `CheXpertClassifier`; errors name no file, since no answer and no log may name one."""
        try:
            results = super().predict(*inputs, **options)
        except RadiographError as error:
            error.name = ""
            raise
        for result in results if isinstance(results, list) else [results]:
            if isinstance(result, RadiographError):
                result.name = ""
        return results

    def _read_and_prepare(self, source: Source) -> Prepared:
        return self._classifier.prepare(self._classifier.read(content_of(source)), for_gate=True)


def content_of(source: Source) -> RadiographSource:
    """Return the bytes of a member of an archive; anything else as it is."""
    return source_of(source) if isinstance(source, ArchiveMember) else source


def _pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of `count` threads; if there are several, torch uses one thread in each of them."""
    return ThreadPoolExecutor(count, name, partial(torch.set_num_threads, 1) if count > 1 else None)


def _compute_by(worker: CheXpertClassifier, alone: CheXpertClassifier) -> Compute[Prepared, Prediction]:
    def compute(images: Sequence[Prepared], saliency: object, is_alone: bool) -> list[Prediction]:
        classifier = alone if is_alone else worker
        return list(classifier.predict_prepared(images, saliency=bool(saliency), batch_size=len(images)))

    return compute


def gives_same_bits(classifier: CheXpertClassifier, other: CheXpertClassifier, sizes: Sequence[int]) -> bool:
    """Whether `other` gives, in batches of these `sizes`, exactly the scores that `classifier` gives one by one.

    This is tried on random gray levels: a network saturates on a blank image, which hides differences of rounding.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (max(sizes), _TRIAL_SIDE, _TRIAL_SIDE), dtype=np.uint8)
    images = [classifier.prepare(Image.fromarray(image)) for image in pixels]
    alone = [next(classifier.predict_prepared([image], batch_size=1)).probabilities for image in images[:_TRIAL_ROWS]]
    scored = [(size, [*other.predict_prepared(images[:size], batch_size=size)]) for size in sizes]
    return all([one.probabilities for one in rows][:_TRIAL_ROWS] == alone[:size] for size, rows in scored)
