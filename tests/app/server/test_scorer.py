"""The classifier for many callers; how requests are scheduled: `test_scheduler`."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from chexpert_hf import OBSERVATIONS, CheXpertClassifier
from chexpert_hf.app.server.scheduler import UnavailableError
from chexpert_hf.app.server.scorer import SharedClassifier, gives_same_bits
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.app.server.conftest import StubGate, png


@pytest.fixture
def shared(classifier):
    shared = SharedClassifier(classifier)
    yield shared
    shared.close()


def test_each_of_many_callers_gets_the_bits_that_its_radiograph_has_alone(classifier, shared):
    images = [png(seed) for seed in range(40)]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(shared.predict, images))
    assert [one.probabilities for one in answers] == [classifier.predict(image).probabilities for image in images]
    assert len({tuple(answer.probabilities.values()) for answer in answers}) == 40


def test_maps_go_to_those_who_asked_for_them_and_scores_are_the_same(shared):
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(shared.predict, png(1), saliency=bool(number % 2)) for number in range(8)]
    predictions = [future.result() for future in futures]
    assert [bool(one.saliency) for one in predictions] == [False, True] * 4
    assert len({tuple(one.probabilities.values()) for one in predictions}) == 1


def test_who_sends_what_cannot_be_read_is_told_and_the_others_are_scored(shared):
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(shared.predict, data) for data in (png(1), b"no image", png(2))]
    assert futures[0].result().probabilities
    assert futures[2].result().probabilities
    with pytest.raises(RadiographError, match="the content is none of these"):
        futures[1].result()


def test_a_radiograph_is_read_once_for_the_network_and_the_gate(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "gate", StubGate(lambda image: (image.size, threading.get_ident())))
    shared = SharedClassifier(classifier)
    reads, read = [], classifier.read
    monkeypatch.setattr(classifier, "read", lambda source: reads.append(source) or read(source))
    file = io.BytesIO(png(1))
    prediction = shared.predict(file)
    shared.close()
    size, thread = prediction.gate
    assert reads == [file]
    assert prediction.probabilities == classifier.predict(png(1)).probabilities
    assert size == (64, 80)
    assert thread != threading.get_ident()


def test_a_failing_gate_is_told_to_its_caller_and_to_nobody_else(classifier, monkeypatch):
    good = np.asarray(classifier.read(png(1)).image)
    monkeypatch.setattr(
        classifier, "gate", StubGate(lambda image: None if (np.asarray(image) == good).all() else 1 / 0)
    )
    shared = SharedClassifier(classifier)
    with ThreadPoolExecutor(3) as callers:
        futures = [callers.submit(shared.predict, png(seed)) for seed in range(3)]
    assert futures[1].result().probabilities
    for future in (futures[0], futures[2]):
        with pytest.raises(ZeroDivisionError):
            future.result()
    assert shared.predict(png(1)).probabilities
    shared.close()


def test_a_stopped_classifier_takes_nobody_in(classifier):
    shared = SharedClassifier(classifier)
    shared.close()
    with pytest.raises(UnavailableError, match="is stopping"):
        shared.predict(png(2))


class TableRuntime:
    """Logits from a table by a row's pixels, in batches of some sizes a little larger; keeps who computed how many."""

    name, precision, reason, is_on_cpu = "table", "fp32", "", True
    device = torch.device("cpu")

    def __init__(self, worker="all", passes=None, copies=(), sizes_that_differ=()):
        self.worker, self.passes, self.copies = worker, passes, copies
        self.sizes_that_differ = sizes_that_differ
        self.meeting = None  # a barrier at which the copies wait for each other before their first passes
        self.table = torch.randn(97, len(OBSERVATIONS), generator=torch.Generator().manual_seed(0))

    def __call__(self, pixel_values, *, saliency=False):
        if self.meeting:
            self.meeting.wait(60)
            self.meeting = None
        if self.passes is not None:
            self.passes.append((self.worker, len(pixel_values)))
        logits = torch.stack([self.table[int(one.sum().abs()) % 97] for one in pixel_values])
        return logits + 1e-5 * (len(pixel_values) in self.sizes_that_differ), None

    def side_by_side(self):
        return self.copies or [self]


@pytest.fixture
def computed_by(classifier):
    return lambda runtime: CheXpertClassifier(classifier.model, classifier.processor, runtime=runtime)


@pytest.mark.parametrize(("sizes", "is_kept"), [((), True), ((2,), False), ((3,), False), ((8,), False)])
def test_scores_that_depend_on_the_batch_are_found_out(computed_by, sizes, is_kept):
    classifier = computed_by(TableRuntime(sizes_that_differ=sizes))
    assert gives_same_bits(classifier, classifier, (2, 3, 8)) is is_kept


def test_where_scores_depend_on_the_batch_every_radiograph_has_one_of_its_own(computed_by):
    passes = []
    shared = SharedClassifier(computed_by(TableRuntime(passes=passes, sizes_that_differ=(8,))))
    passes.clear()
    with ThreadPoolExecutor(12) as callers:
        list(callers.map(shared.predict, [png(seed) for seed in range(24)]))
    shared.close()
    assert passes == [("all", 1)] * 24


def test_side_by_side_each_gets_its_own_answer_and_who_is_alone_gets_all_processors(computed_by):
    passes = []
    copies = [TableRuntime(name, passes) for name in "ab"]
    alone = computed_by(TableRuntime())
    shared = SharedClassifier(computed_by(TableRuntime(passes=passes, copies=copies)))
    images = [png(seed) for seed in range(40)]
    passes.clear()
    assert shared.predict(images[0]).probabilities == alone.predict(images[0]).probabilities
    assert passes == [("all", 1)]
    copies[0].meeting = copies[1].meeting = threading.Barrier(2)
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(shared.predict, images))
    shared.close()
    assert [one.probabilities for one in answers] == [alone.predict(image).probabilities for image in images]
    assert {worker for worker, _ in passes} >= {"a", "b"}
    assert max(count for _, count in passes) <= 4


def test_where_other_bits_come_out_side_by_side_it_is_left_alone(computed_by):
    passes = []
    copies = [TableRuntime(name, passes, sizes_that_differ=(1, 2, 3, 4)) for name in "ab"]
    shared = SharedClassifier(computed_by(TableRuntime(passes=passes, copies=copies)))
    passes.clear()
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(shared.predict, [png(seed) for seed in range(16)]))
    shared.close()
    assert {worker for worker, _ in passes} == {"all"}


def test_it_is_a_classifier_in_all_else(classifier, shared):
    assert shared.observations == classifier.observations
    assert shared.operating_points == classifier.operating_points
    assert shared.members == classifier.members
    assert shared.model is classifier.model
