"""The table survives what it tries, says FAILED where a promise is not kept, and its quick rows run here."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import table
from tests.hostile.bad_rows import file_rows
from tests.hostile.promises import Figure, Settings, judged
from tests.hostile.table import PROMISES, Promise, chosen, figures_of, table_line
from tests.hostile.watched import is_here

NOTHING = Settings("", ())


def goes_well(_: Settings) -> Iterator[Figure]:
    yield judged("a try", {"lost": 0, "ratio": 1.2}, {"none lost": True, "ratio under 2": True})


def raises(_: Settings) -> Iterator[Figure]:
    yield from goes_well(NOTHING)
    raise ValueError("the first line\nthe second")


def dies(_: Settings) -> Iterator[Figure]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def hangs(_: Settings) -> Iterator[Figure]:
    while True:
        signal.pause()
    yield from ()


def promise(function: str) -> Promise:
    return Promise("G0", "a text", "test_table", function)


def test_the_sixteen_are_in_order_and_each_can_be_tried():
    assert [one.number for one in PROMISES] == [f"G{number}" for number in range(1, 17)]
    for one in PROMISES:
        source = (Path(table.__file__).parent / f"{one.module}.py").read_text()
        assert f"\ndef {one.function}(" in source


def test_some_can_be_chosen_and_stay_in_order():
    assert [one.number for one in chosen("g8, G5")] == ["G5", "G8"]
    assert chosen("") == list(PROMISES)
    with pytest.raises(SystemExit, match="Expected numbers from G1 to G16, got G17"):
        chosen("G1,G17")


def test_a_promise_that_is_not_kept_is_named_in_its_row():
    figure = judged("20 requests", {"lost": 1}, {"none lost": False, "in time": True})
    assert table_line("G5", figure) == "| G5 | 20 requests | lost 1 | FAILED: none lost |"
    (kept,) = goes_well(NOTHING)
    assert table_line("G5", kept) == "| G5 | a try | lost 0, ratio 1.2 | kept |"


def test_an_exception_is_a_row_that_failed_beside_those_before_it(capfd):
    good, bad = figures_of(promise("raises"), NOTHING)
    assert not good.broken
    assert bad.found == "could not be tried: ValueError: the first line"
    assert bad.broken
    assert "the second" in capfd.readouterr().err  # the traceback, for whoever looks


def test_a_death_and_a_process_that_does_not_end_are_rows_that_failed():
    (dead,) = figures_of(promise("dies"), NOTHING)
    assert (dead.found, bool(dead.broken)) == (f"its process ended with -{signal.SIGKILL:d}", True)
    (hanging,) = figures_of(promise("hangs"), NOTHING, seconds=0.2)
    assert (hanging.found, bool(hanging.broken)) == ("not at its end after 0 s", True)


def test_the_exit_code_is_1_if_a_row_failed(monkeypatch, capsys, tmp_path):
    (tmp_path / "a.png").touch()
    rows = {"G1": goes_well, "G2": lambda _: iter([Figure("a try", "all lost", ("none lost",))])}
    monkeypatch.setattr(table, "figures_of", lambda promise, settings: rows[promise.number](settings))
    for only, code, rest in (("G1", 0, "kept"), ("G1,G2", 1, "FAILED: none lost")):
        with pytest.raises(SystemExit, match=f"^{code}$"):
            table.main(["--model", "M", "--radiographs", str(tmp_path), "--only", only])
        assert f"| {rest} |" in capsys.readouterr().out


def test_bad_rows_of_a_data_set_are_all_named():
    (figure,) = file_rows(NOTHING)
    assert figure.found == "named before step 1 20 of 20, good ones refused 0"
    assert figure.broken == ()


def test_this_machine_is_told_from_others():
    assert all(map(is_here, (None, "localhost", b"127.0.0.1", "::1", "0.0.0.0", "")))
    assert not any(map(is_here, ("huggingface.co", b"example.org", "10.0.0.1", "2001:db8::1")))
