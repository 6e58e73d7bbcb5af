"""The scheduler, with functions of numbers in place of a model."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chexpert_hf.app.server.scheduler import Scheduler, UnavailableError


class Held:
    """A batch function that waits until it is opened, and keeps what it was given."""

    def __init__(self):
        self.opened, self.begun = threading.Event(), threading.Semaphore(0)
        self.batches, self.alone = [], []

    def __call__(self, items, kind, is_alone):
        self.batches.append(list(items))
        self.alone.append(is_alone)
        self.begun.release()
        assert self.opened.wait(20)
        return [10 * item for item in items]

    def wait_until_begun(self):
        assert self.begun.acquire(timeout=20)


def positive(number):
    if number < 0:
        raise ValueError("negative")
    return number


@pytest.fixture
def schedule():
    """Makes schedulers that are closed at the end; one reader keeps the order of requests."""
    made = []

    def make(*compute, readers=1, prepare=positive, **options):
        pools = ThreadPoolExecutor(readers), ThreadPoolExecutor(len(compute))
        made.append(Scheduler(prepare, compute, *pools, **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


def wait_until_prepared(scheduler):
    """With one reader, what was submitted before a request that cannot be prepared is prepared when that has failed."""
    with pytest.raises(ValueError, match="negative"):
        scheduler.submit(-1).result(20)


def test_each_of_many_callers_gets_the_result_of_its_own_request(schedule):
    plus_one = lambda items, *_: [item + 1 for item in items]  # noqa: E731
    scheduler = schedule(plus_one, plus_one, readers=4, prepare=lambda source: 2 * source)
    with ThreadPoolExecutor(16) as callers:
        results = list(callers.map(lambda number: scheduler.submit(number).result(20), range(500)))
    assert results == [2 * number + 1 for number in range(500)]


def test_requests_that_wait_share_a_batch_the_oldest_first_and_none_waits_for_a_full_one(schedule):
    held = Held()
    scheduler = schedule(held, batch_size=8)
    answers = [scheduler.submit(0)]
    held.wait_until_begun()
    answers += [scheduler.submit(number) for number in range(1, 13)]
    wait_until_prepared(scheduler)
    held.opened.set()
    assert [answer.result(20) for answer in answers] == [10 * number for number in range(13)]
    assert held.batches == [[0], [*range(1, 9)], [*range(9, 13)]]
    assert held.alone == [True, False, True]


def test_only_requests_of_one_kind_share_a_batch(schedule):
    kinds, held = [], Held()

    def compute(items, kind, is_alone):
        kinds.append((kind, list(items)))
        return held(items, kind, is_alone)

    scheduler = schedule(compute)
    answers = [scheduler.submit(0, "a")]
    held.wait_until_begun()
    answers += [scheduler.submit(number, "ab"[number % 2]) for number in range(1, 5)]
    wait_until_prepared(scheduler)
    held.opened.set()
    assert [answer.result(20) for answer in answers] == [0, 10, 20, 30, 40]
    assert kinds == [("a", [0]), ("b", [1, 3]), ("a", [2, 4])]


def test_requests_that_wait_are_divided_among_the_functions(schedule):
    held = Held()
    scheduler = schedule(held, held)
    answers = []
    for number in (0, 1):
        answers.append(scheduler.submit(number))
        held.wait_until_begun()
    answers += [scheduler.submit(number) for number in range(2, 8)]
    wait_until_prepared(scheduler)
    held.opened.set()
    assert [answer.result(20) for answer in answers] == [10 * number for number in range(8)]
    assert held.batches[:3] == [[0], [1], [2, 3, 4]]
    assert held.alone[:3] == [True, False, False]


def test_an_error_while_preparing_goes_to_its_caller_alone(schedule):
    scheduler = schedule(lambda items, *_: items)
    answers = [scheduler.submit(number) for number in (1, -1, 2)]
    assert (answers[0].result(20), answers[2].result(20)) == (1, 2)
    with pytest.raises(ValueError, match="negative"):
        answers[1].result(20)


def test_an_error_of_a_batch_goes_to_all_in_it_and_the_next_batch_is_computed(schedule):
    held = Held()
    scheduler = schedule(lambda items, *rest: 1 / 0 if 1 in items else held(items, *rest))
    first = scheduler.submit(0)
    held.wait_until_begun()
    failing = [scheduler.submit(number) for number in (1, 2, 3)]
    wait_until_prepared(scheduler)
    held.opened.set()
    assert first.result(20) == 0
    for answer in failing:
        with pytest.raises(ZeroDivisionError):
            answer.result(20)
    assert scheduler.submit(4).result(20) == 40


def test_a_function_that_gives_too_few_results_loses_nobody(schedule):
    scheduler = schedule(lambda items, *_: items[1:])
    with pytest.raises(ValueError, match="shorter"):
        scheduler.submit(1).result(20)


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_there_is_room(schedule):
    held = Held()
    scheduler = schedule(held, max_waiting=3)
    answers = [scheduler.submit(number, may_refuse=True) for number in range(3)]
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="3 requests are waiting"):
        scheduler.submit(3, may_refuse=True)
    assert time.monotonic() - begin < 1
    answers.append(scheduler.submit(4))  # of who may not be refused
    held.opened.set()
    assert [answer.result(20) for answer in answers] == [0, 10, 20, 40]
    assert scheduler.submit(5, may_refuse=True).result(20) == 50


def test_who_gives_up_before_it_is_prepared_costs_nothing_and_makes_room(schedule):
    held = Held()
    opened = threading.Event()
    scheduler = schedule(held, prepare=lambda number: opened.wait(20) and number, max_waiting=2)
    first, second = scheduler.submit(1), scheduler.submit(2)
    assert second.cancel()
    third = scheduler.submit(3, may_refuse=True)
    opened.set()
    held.opened.set()
    assert (first.result(20), third.result(20)) == (10, 30)
    assert [2] not in held.batches


def test_closing_tells_all_who_wait_at_once_and_finishes_what_is_running(schedule):
    held = Held()
    scheduler = schedule(held)
    running = scheduler.submit(1)
    held.wait_until_begun()
    waiting = scheduler.submit(2)
    wait_until_prepared(scheduler)
    scheduler.close()
    with pytest.raises(UnavailableError, match="is stopping"):
        waiting.result(0)
    with pytest.raises(UnavailableError, match="is stopping"):
        scheduler.submit(3)
    held.opened.set()
    assert running.result(20) == 10


def test_closing_tells_those_who_are_not_prepared_yet(schedule):
    opened = threading.Event()
    scheduler = schedule(lambda items, *_: items, prepare=lambda number: opened.wait(20) and number)
    answers = [scheduler.submit(number) for number in range(1, 4)]
    scheduler.close()
    opened.set()
    for answer in answers:
        with pytest.raises(UnavailableError, match="The server is stopping"):
            answer.result(20)
