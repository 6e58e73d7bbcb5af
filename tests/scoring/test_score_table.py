"""Rows as text and back, and a table that was cut off anywhere."""

import csv
import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from chexpert_hf.errors import InputError
from chexpert_hf.folders import score_table
from chexpert_hf.folders.score_output import read_rows, write_table
from chexpert_hf.folders.score_table import CsvLines, GrowingTable, JsonLines, KeptRows, readable, resume_table

COLUMNS = ["path", "Edema", "Fracture", "error"]
AWKWARD = [
    "a,b.png",
    'say "x".png',
    "two\nlines.png",
    "back\rhere.png",
    "=cmd|x!A1.png",
    "-1.png",
    "@x",
    "é.png",
    "a b",
]
ROWS = [
    *([name, 0.25, 1.0, None] for name in AWKWARD),
    ["bad, name.png", None, None, 'expected "DICM", got nothing'],
    ["last.png", 1e-7, 0.1234567, None],
]


def write(path, lines, rows=ROWS):
    with GrowingTable(path, lines) as table:
        for row in rows:
            table.append([row])


@pytest.fixture(params=[CsvLines, JsonLines])
def lines(request):
    return request.param(COLUMNS)


@pytest.fixture
def table(tmp_path, lines):
    path = tmp_path / "new" / "scores"
    write(path, lines)
    return path


def test_csv_is_read_by_others_as_it_was_written(tmp_path):
    write(tmp_path / "a.csv", CsvLines(COLUMNS))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert header == COLUMNS
    assert [os.path.normpath(row[0]) for row in rows] == [row[0] for row in ROWS]
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame["Fracture"].tolist()[:2] == [1.0, 1.0]
    assert frame["Fracture"].iloc[-1] == 0.123457
    assert frame["error"].dropna().tolist() == [ROWS[-2][3]]
    assert rows[-1][1:] == ["0.000000", "0.123457", ""]


def test_no_csv_cell_begins_as_a_formula_does(tmp_path):
    text = b"".join(CsvLines(COLUMNS).line([f"{mark}cmd.png", 0.5, 0.5, None]) for mark in "=+-@\t\r\n＝")
    assert all(row[0].startswith("./") for row in csv.reader(io.StringIO(text.decode(), newline="")))


def test_json_lines_hold_numbers_and_null(tmp_path):
    write(tmp_path / "a.jsonl", JsonLines(COLUMNS))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [row[0] for row in ROWS]
    assert rows[-2:] == [
        {"path": "bad, name.png", "Edema": None, "Fracture": None, "error": ROWS[-2][3]},
        {"path": "last.png", "Edema": 0.0, "Fracture": 0.123457, "error": None},
    ]


def test_rows_outlive_a_kill_at_once_and_a_power_failure_after_a_while(tmp_path, lines, monkeypatch):
    synced = []
    monkeypatch.setattr(score_table.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    path = tmp_path / "a"
    with GrowingTable(path, lines) as table:
        table.append(ROWS[:2])
        size = path.stat().st_size
        assert size == len(lines.header() + b"".join(map(lines.line, ROWS[:2])))
        assert synced == []
        monkeypatch.setattr(score_table, "SYNC_SECONDS", -1)
        table.append([])
        assert synced == [size]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_whole_table_says_the_same_in_every_format(tmp_path, suffix):
    columns = ["study", "views", "Edema", "error"]
    rows = [["a", 2, 0.5, None], ["b,c", 0, None, "1 of 1"]]
    path = tmp_path / f"a{suffix}"
    path.write_text("an older one")
    write_table(path, columns, rows)
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}[suffix]
    frame = read(path).astype(object)
    assert list(frame) == columns
    assert frame.where(frame.notna(), None).to_numpy().tolist() == rows
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_parquet_table_keeps_all_rows_and_types(tmp_path):
    rows = [[f"{n}.png", n / 25000, None, None] for n in range(25_000)]
    write_table(tmp_path / "a.parquet", COLUMNS, rows)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["path"].tolist() == [row[0] for row in rows]
    assert frame["Edema"].tolist() == [row[1] for row in rows]
    assert frame["Fracture"].dtype == float


def test_rows_of_json_lines_come_back(tmp_path):
    write(tmp_path / "a.jsonl", JsonLines(COLUMNS))
    assert list(read_rows(tmp_path / "a.jsonl", COLUMNS))[:-1] == ROWS[:-1]


def test_a_name_that_is_no_text_becomes_one():
    assert readable(os.fsdecode(b"caf\xe9.png")) == "caf\\udce9.png"


def test_a_utf_8_name_that_an_ascii_locale_took_apart_is_put_together():
    assert readable("größe.png".encode().decode("ascii", "surrogateescape")) == "größe.png"
    assert readable("größe.png") == "größe.png"


def test_cut_off_at_any_byte_a_table_goes_on_as_if_nothing_had_been(table, lines):
    whole = table.read_bytes()
    names = [row[0] for row in ROWS]
    for length in range(len(whole) + 1):
        table.write_bytes(whole[:length])
        kept = resume_table(table, lines, names, batch_size=2)
        done = sum(
            len(b"".join(map(lines.line, ROWS[:count]))) <= length - len(lines.header()) for count in range(1, 12)
        )
        assert kept.rows == (11 if done == 11 else done // 2 * 2)
        assert kept.failed == (kept.rows >= 10)
        write(table, lines, ROWS[kept.rows :])
        assert table.read_bytes() == whole, length


def test_zeros_that_a_power_failure_left_are_cut_off(table, lines):
    whole = table.read_bytes()
    table.write_bytes(whole[:-60] + bytes(4096) + b"\n" + bytes(10))
    kept = resume_table(table, lines, [row[0] for row in ROWS], batch_size=1)
    write(table, lines, ROWS[kept.rows :])
    assert table.read_bytes() == whole


def test_nothing_is_kept_of_a_table_that_is_not_there(tmp_path, lines):
    assert resume_table(tmp_path / "none", lines, ["a.png"], batch_size=2) == KeptRows(0, 0)


def test_a_table_of_other_files_or_columns_is_refused_and_left_as_it_is(table, lines):
    whole = table.read_bytes()
    names = [row[0] for row in ROWS]
    with pytest.raises(InputError, match=r"row 3 is two\nlines.png, expected new.png"):
        resume_table(table, lines, [*names[:2], "new.png", *names[2:]], batch_size=2)
    with pytest.raises(InputError, match=r"row 11 is last.png, expected no more rows"):
        resume_table(table, lines, names[:-1], batch_size=2)
    other = type(lines)(["path", "Cardiomegaly", "Fracture", "error"])
    with pytest.raises(InputError, match=r"other columns|row 1 cannot be read"):
        resume_table(table, other, names, batch_size=2)
    assert table.read_bytes() == whole


def test_a_row_that_makes_no_sense_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(InputError, match="row 1 cannot be read"):
        resume_table(path, JsonLines(COLUMNS), ["a.png"], batch_size=2)


def test_a_full_disk_is_one_line():
    with pytest.raises(
        InputError, match=r"/dev/full cannot be written: No space left on device\. Its rows are kept; use --resume"
    ):
        write(Path("/dev/full"), CsvLines(COLUMNS))
