import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from chexpert_hf.app.server.scorer import SharedClassifier, StoppedError, _Request, rows_are_independent
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.app.server.conftest import StubGate, png


@pytest.fixture
def shared(classifier):
    shared = SharedClassifier(classifier, batch_size=1)
    shared.batch_size = 8  # as where rows are independent, which PyTorch's are not on every machine
    yield shared
    shared.close()


class Gated:
    """The network of a classifier, which waits until it is opened; passes are counted."""

    def __init__(self, shared):
        self.opened, self.sizes = threading.Event(), []
        self._predict = shared._classifier.predict_prepared

    def __call__(self, images, **options):
        self.sizes.append(len(images))
        assert self.opened.wait(20)
        return list(self._predict(images, **options))


def test_each_of_many_callers_gets_the_scores_of_its_own_radiograph(classifier, shared):
    images = [png(seed) for seed in range(40)]
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(shared.predict, images))
    for image, answer in zip(images, answers, strict=True):
        alone = classifier.predict(image)
        assert np.allclose([*answer.probabilities.values()], [*alone.probabilities.values()], atol=1e-6)
    assert len({tuple(answer.probabilities.values()) for answer in answers}) == 40


def test_where_rows_depend_on_each_other_every_radiograph_has_the_bits_that_it_has_alone(classifier):
    shared = SharedClassifier(classifier)
    images = [png(seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(shared.predict, images))
    shared.close()
    assert [one.probabilities for one in answers] == [classifier.predict(image).probabilities for image in images]


def test_callers_who_wait_share_a_pass_and_nobody_waits_for_a_full_one(shared, monkeypatch):
    gate = Gated(shared)
    monkeypatch.setattr(shared._classifier, "predict_prepared", gate)
    with ThreadPoolExecutor(13) as callers:
        first = callers.submit(shared.predict, png(0))
        wait_until(lambda: gate.sizes)
        others = [callers.submit(shared.predict, png(seed)) for seed in range(1, 13)]
        wait_until(lambda: len(shared._waiting) == 12)
        gate.opened.set()
        for future in (first, *others):
            future.result(20)
    assert gate.sizes == [1, 8, 4]


def test_maps_go_to_those_who_asked_for_them_and_scores_are_the_same(shared):
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(shared.predict, png(1), saliency=bool(number % 2)) for number in range(8)]
    predictions = [future.result() for future in futures]
    assert [one.saliency is not None for one in predictions] == [False, True] * 4


def test_who_sends_what_cannot_be_read_is_told_and_the_others_are_scored(shared):
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(shared.predict, data) for data in (png(1), b"no image", png(2))]
    assert futures[0].result().probabilities
    assert futures[2].result().probabilities
    with pytest.raises(RadiographError, match="the content is none of these"):
        futures[1].result()


def test_a_radiograph_is_read_once_for_the_network_and_the_gate(classifier, shared, monkeypatch):
    reads, read = [], shared.read
    monkeypatch.setattr(shared, "read", lambda source: reads.append(source) or read(source))
    monkeypatch.setattr(classifier, "gate", StubGate(lambda image: (image.size, threading.get_ident())))
    file = io.BytesIO(png(1))
    prediction = shared.predict(file)
    size, thread = prediction.gate
    assert prediction.probabilities == classifier.predict(png(1)).probabilities
    assert size == (64, 80)
    assert thread not in (threading.get_ident(), *(network.ident for network in shared._networks))
    assert reads == [file]


def test_a_failing_gate_is_told_to_its_caller_and_to_nobody_else_in_the_pass(classifier, shared, monkeypatch):
    gate = Gated(shared)
    monkeypatch.setattr(shared._classifier, "predict_prepared", gate)
    good = np.asarray(classifier.read(png(1)).image)
    judged = StubGate(lambda image: None if (np.asarray(image) == good).all() else 1 / 0)
    monkeypatch.setattr(classifier, "gate", judged)
    with ThreadPoolExecutor(3) as callers:
        futures = [callers.submit(shared.predict, png(seed)) for seed in range(3)]
        wait_until(lambda: gate.sizes and len(shared._waiting) + sum(gate.sizes) == 3)
        gate.opened.set()
    assert futures[1].result().probabilities
    for future in (futures[0], futures[2]):
        with pytest.raises(ZeroDivisionError):
            future.result()
    monkeypatch.undo()
    assert shared.predict(png(4)).probabilities


def test_no_error_of_the_server_names_a_file(shared, tmp_path):
    (tmp_path / "PLANTED^NAME.png").write_text("no image")
    for source in (tmp_path / "PLANTED^NAME.png", [tmp_path / "PLANTED^NAME.png"]):
        with pytest.raises(RadiographError, match=r"^Expected a JPEG, PNG"):
            shared.predict(source)
    first, second = shared.predict([tmp_path / "none^NAME.png", png(1)], errors="return")
    assert str(first).startswith("File not found")
    assert second.probabilities == shared.predict(png(1)).probabilities


def test_a_failing_pass_is_told_to_all_in_it_and_the_next_one_works(shared, monkeypatch):
    predict = shared._classifier.predict_prepared
    gate = Gated(shared)
    gate._predict = lambda *_, **__: 1 / 0
    monkeypatch.setattr(shared._classifier, "predict_prepared", gate)
    with ThreadPoolExecutor(4) as callers:
        first = callers.submit(shared.predict, png(0))
        wait_until(lambda: gate.sizes)
        others = [callers.submit(shared.predict, png(seed)) for seed in range(1, 4)]
        wait_until(lambda: len(shared._waiting) == 3)
        gate.opened.set()
        for future in (first, *others):
            with pytest.raises(ZeroDivisionError, match="division"):
                future.result(20)
    assert gate.sizes == [1, 3]
    monkeypatch.setattr(shared._classifier, "predict_prepared", predict)
    assert shared.predict(png(1)).probabilities


def test_who_waits_when_the_server_stops_is_told_at_once(shared, monkeypatch):
    gate = Gated(shared)
    monkeypatch.setattr(shared._classifier, "predict_prepared", gate)
    with ThreadPoolExecutor(4) as callers:
        running = callers.submit(shared.predict, png(0))
        wait_until(lambda: gate.sizes)
        waiting = callers.submit(shared.predict, png(1))
        wait_until(lambda: shared._waiting)
        shared.close()
        with pytest.raises(StoppedError, match="is stopping"):
            waiting.result(20)
        with pytest.raises(StoppedError, match="is stopping"):
            shared.predict(png(2))
        gate.opened.set()
        assert running.result(20).probabilities


def test_rows_that_lean_on_their_neighbours_are_found_out(classifier, monkeypatch):
    forward = classifier._forward
    monkeypatch.setattr(
        classifier, "_forward", lambda gray, saliency: (forward(gray, saliency)[0] + 1e-3 * (len(gray) > 2), None)
    )
    assert not rows_are_independent(classifier, 8)
    assert SharedClassifier(classifier).batch_size == 1


def row_by_row(classifier):
    """A network whose logits do not depend on the pass."""
    table = torch.randn(97, len(classifier.observations), generator=torch.Generator().manual_seed(0))
    return lambda gray, saliency: (torch.stack([table[int(one.sum()) % 97] for one in gray]), None)


def test_where_logits_do_not_depend_on_the_pass_probabilities_do_not_either(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "_forward", row_by_row(classifier))
    images = [classifier.prepare(classifier.read(png(seed))) for seed in range(16)]
    alone = [next(classifier.predict_prepared([image], batch_size=1)).probabilities for image in images]
    for size in (3, 16):
        together = classifier.predict_prepared(images, batch_size=size)
        assert [one.probabilities for one in together] == alone
    assert rows_are_independent(classifier, 8)


class Counted:
    """`predict_prepared` of a classifier, which tells who was asked to score how many."""

    def __init__(self, classifier, name, passes, before=lambda: None):
        self.name, self.passes, self.before = name, passes, before
        self._predict = classifier.predict_prepared

    def __call__(self, images, **options):
        self.passes.append((self.name, len(images)))
        self.before()
        return self._predict(images, **options)


@pytest.fixture
def side_by_side(classifier, monkeypatch):
    """Two copies of a classifier, as of a runtime that computes side by side."""
    monkeypatch.setattr(classifier, "_forward", row_by_row(classifier))
    copies = [copy.copy(classifier) for _ in range(2)]
    for one in copies:
        one.members = (one,)
        vars(one).pop("predict_prepared", None)  # which undoing a patch leaves behind in older versions of pytest
    monkeypatch.setattr(classifier, "side_by_side", lambda: copies)
    return copies


def test_side_by_side_those_who_wait_are_divided_and_each_gets_its_own_answer(classifier, side_by_side):
    shared, passes = SharedClassifier(classifier), []
    for name, worker in zip("ab", side_by_side, strict=True):
        worker.predict_prepared = Counted(worker, name, passes, before=lambda: wait_until(lambda: len(passes) > 1))
    requests = [_Request(saliency=False) for _ in range(6)]
    for seed, request in enumerate(requests):
        request.prepared = [classifier.prepare(classifier.read(png(seed)))]
    with shared._changed:
        shared._waiting.extend(requests)
        shared._changed.notify_all()
    for seed, request in enumerate(requests):
        assert request.future.result(20).probabilities == classifier.predict(png(seed)).probabilities
    shared.close()
    assert {passes[0][0], passes[1][0]} == {"a", "b"}
    assert [count for _, count in passes[:2]] == [3, 2]
    assert sum(count for _, count in passes) == 6


def test_who_is_alone_gets_all_processors(classifier, side_by_side, monkeypatch):
    shared, passes = SharedClassifier(classifier), []
    for name, one in zip(("all", "a", "b"), (classifier, *side_by_side), strict=True):
        monkeypatch.setattr(one, "predict_prepared", Counted(one, name, passes))
    for seed in range(3):
        shared.predict(png(seed))
    shared.close()
    assert passes == [("all", 1)] * 3


def test_where_other_bits_come_out_side_by_side_it_is_left_alone(classifier, side_by_side):
    shared = SharedClassifier(classifier)
    shared.close()
    assert shared._workers == side_by_side
    forward = classifier._forward
    side_by_side[0]._forward = lambda gray, saliency: (forward(gray, saliency)[0] + 1e-6, None)
    shared = SharedClassifier(classifier)
    shared.close()
    assert shared._workers == [classifier]


def test_it_is_a_classifier_in_all_else(classifier, shared):
    assert shared.observations == classifier.observations
    assert shared.operating_points == classifier.operating_points
    assert shared.members == classifier.members
    assert shared.model is classifier.model


def wait_until(condition):
    signal = threading.Event()
    for _ in range(2000):
        if condition():
            return
        signal.wait(0.005)
    raise AssertionError("it never came about")
