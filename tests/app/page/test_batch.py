"""Many radiographs: found, scored, as a table, as CSV, as overlays."""

import csv
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.app.page import batch
from chexpert_hf.app.page.batch import (
    THUMBNAIL_SIZE,
    csv_of,
    find_items,
    parquet_of,
    score_items,
    write_overlays,
)
from chexpert_hf.app.page.html import render
from chexpert_hf.app.page.reading import Item
from chexpert_hf.errors import InputError
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.radiographs.finding import Found
from chexpert_hf.scoring.saliency import overlay
from tests.app.page.conftest import JUDGED, REFUSAL, WARNING
from tests.dicom_files import dicom_without_pixels


@pytest.fixture
def items(files: dict[str, Path]) -> list[Item]:
    return find_items(
        [
            ("two.zip", files["two"]),
            ("=1+1.png", files["warned"]),
            ("broken.png", files["broken"]),
            ("blank.png", files["blank"]),
        ],
        Found(),
    )


def table_of(classifier: CheXpertClassifier, rows: list[Item], notes: Sequence[str] = ()) -> str:
    names = CHEXPERT.in_order(classifier.observations)
    return "".join(
        (
            render("list_status.html", rows=rows, is_study_possible=False),
            render("table.html", id="a", names=names, notes=notes, is_new=True),
            render("rows.html", rows=rows, start=0, names=names),
        )
    )


@pytest.fixture
def rows(classifier: CheXpertClassifier, items: list[Item]) -> list[Item]:
    return list(score_items(classifier, items, is_gated=True))


def test_archives_are_opened_and_their_members_named(items: list[Item]) -> None:
    assert [item.name for item in items] == [
        "two.zip/a.png",
        "two.zip/b/<b>.png",
        "=1+1.png",
        "broken.png",
        "blank.png",
    ]


def test_damaged_archive_is_one_row_with_a_reason(classifier: CheXpertClassifier, tmp_path: Path) -> None:
    path = tmp_path / "upload.zip"
    path.write_bytes(b"PK\x03\x04 and nothing else")
    (row,) = score_items(classifier, find_items([("mine.zip", path)], Found()), is_gated=True)
    assert row.name == "mine.zip"
    assert row.error is not None
    assert "\n" not in row.error


def test_files_of_operating_systems_and_dicom_without_an_image_have_no_row(
    classifier: CheXpertClassifier, files: dict[str, Path], tmp_path: Path
) -> None:
    report = dicom_without_pixels("1.2.840.10008.5.1.4.1.1.88.11")
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.write(files["phantom"], "scans\\a.png")
        for name in ("__MACOSX/scans/._a.png", "scans/.DS_Store", "scans\\Thumbs.db", "desktop.ini"):
            archive.writestr(name, files["broken"].read_bytes())
        archive.writestr("SR0001", report)
    (tmp_path / "report.dcm").write_bytes(report)
    found = Found()
    uploads = [("mac.zip", "mac.zip"), ("report.dcm", "report.dcm"), ("._a.png", "mac.zip"), ("Thumbs.db", "mac.zip")]
    items = find_items([(name, tmp_path / file) for name, file in uploads], found)
    assert [item.name for item in items] == ["mac.zip/scans/a.png"]
    (row,) = score_items(classifier, items, is_gated=True)
    assert row.error is None
    html = table_of(classifier, [row], found.notes())
    assert "DICOM files without an image (DICOMDIR, reports, presentation states) were skipped: 2." in html
    with pytest.raises(InputError, match=r"^Expected radiographs, got none\. DICOM files without an image .*: 1\.$"):
        find_items([("report.dcm", tmp_path / "report.dcm")], Found())


def test_too_many_radiographs_are_refused_before_any_is_scored(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    monkeypatch.setattr(batch, "MAX_FILES", 2)
    with pytest.raises(InputError, match="Expected at most 2 radiographs at once, got 3"):
        find_items([("two.zip", files["two"]), ("a.png", files["phantom"])], Found())


def test_rows_are_in_order_and_have_the_scores_of_predict(
    classifier: CheXpertClassifier, rows: list[Item], files: dict[str, Path]
) -> None:
    for row, name in zip(rows, ("phantom", "other", "warned"), strict=False):
        assert row.prediction is not None
        assert row.prediction.probabilities == classifier.predict(files[name].read_bytes()).probabilities
    assert rows[2].warnings == (WARNING,)
    assert rows[3].error is not None
    assert rows[3].error.startswith("The PNG image is damaged")
    assert (rows[4].error, rows[4].is_no_radiograph, rows[4].prediction) == (REFUSAL, True, None)


def test_refused_images_are_scored_if_asked_to(classifier: CheXpertClassifier, items: list[Item]) -> None:
    assert list(score_items(classifier, items, is_gated=False))[4].prediction is not None


def test_rows_that_nobody_waits_for_are_not_scored(
    classifier: CheXpertClassifier, files: dict[str, Path], forward_passes: list[int]
) -> None:
    running = score_items(classifier, [Item(files["phantom"], name="a")] * 60, is_gated=True)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert len(forward_passes) < 40


def test_row_keeps_no_image_but_a_thumbnail(rows: list[Item]) -> None:
    maps = rows[0].prediction.maps  # type: ignore[union-attr]
    assert maps.positive.numel() <= len(JUDGED) * 16 * 16
    assert max(Image.open(io.BytesIO(rows[0].jpeg)).size) == THUMBNAIL_SIZE
    assert rows[3].jpeg == b""  # unreadable


def test_rows_are_filtered_by_call_and_by_kind(classifier: CheXpertClassifier, rows: list[Item]) -> None:
    assert [row.kinds for row in rows] == [["scored"], ["scored"], ["scored", "warned"], ["unreadable"], ["refused"]]
    html = table_of(classifier, rows)
    assert re.findall('data-kinds="(.*?)"', html) == ["scored", "scored", "scored warned", "unreadable", "refused"]
    names = CHEXPERT.in_order(JUDGED)
    for called, row in zip(re.findall('data-above="(.*?)"', html), rows, strict=True):
        assert called.startswith("any ") is bool(row.above)
        assert [names[int(each)] for each in called.removeprefix("any ").split()] == [
            name for name in names if row.prediction and row.prediction.positives[name]
        ]
    assert "Score 1 refused anyway" in html
    assert set(rows[0].above) == {name for name in JUDGED if rows[0].prediction.positives[name]} - {"No Finding"}


def test_parquet_is_the_csv_as_numbers(rows: list[Item]) -> None:
    table = pd.read_parquet(io.BytesIO(parquet_of(rows, JUDGED)))
    lines = pd.read_csv(io.BytesIO(csv_of(rows, JUDGED)))
    assert list(table.columns) == list(lines.columns)
    np.testing.assert_allclose(table[list(JUDGED)], lines[list(JUDGED)], atol=1e-6)
    assert table["file"][2] == "=1+1.png"  # no spreadsheet reads it
    for column in ("warnings", "error"):
        assert table[column].fillna("").tolist() == lines[column].fillna("").tolist()


def test_csv_has_every_row_and_no_formula(rows: list[Item]) -> None:
    table = list(csv.DictReader(io.StringIO(csv_of(rows, JUDGED).decode())))
    assert [row["file"] for row in table] == [
        "two.zip/a.png",
        "two.zip/b/<b>.png",
        "./=1+1.png",
        "broken.png",
        "blank.png",
    ]
    for row, expected in zip(table, rows, strict=True):
        assert row["error"] == (expected.error or "")
        for name in JUDGED:
            value = f"{expected.prediction.probabilities[name]:.6f}" if expected.prediction else ""
            assert row[name] == value
    assert table[2]["warnings"] == WARNING


def test_table_is_escaped_and_opens_what_can_be_opened(classifier: CheXpertClassifier, rows: list[Item]) -> None:
    html = table_of(classifier, rows)
    assert "<b>" not in html.replace("<body>", "")
    assert "two.zip/b/&lt;b&gt;.png" in html
    assert ["row-open" in row for row in html.split("<tr ")[2:]] == [True, True, True, False, True]
    assert "<strong>3 of 5</strong> radiographs scored, 2 without scores" in html
    assert "it is &lt;blank&gt;" in html


def test_cells_from_the_operating_point_on_are_marked(classifier: CheXpertClassifier, rows: list[Item]) -> None:
    row = rows[0]
    assert row.prediction is not None
    html = table_of(classifier, [row])
    assert html.count('class="is-above"') == sum(row.prediction.positives.values()) > 0


def test_overlays_are_those_of_predict_and_say_what_is_missing(
    classifier: CheXpertClassifier, rows: list[Item], files: dict[str, Path], tmp_path: Path
) -> None:
    files["warned"].unlink()
    assert list(write_overlays(tmp_path / "o.zip", rows)) == [1, 2, 3, 4, 5]
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        names = archive.namelist()
        folders = {name.split("/")[0] for name in names if "/" in name}
        assert folders == {"0001_a", "0002__b_"}
        prediction = rows[0].prediction
        assert prediction is not None
        above = [name for name, positive in prediction.positives.items() if positive and name != "No Finding"]
        assert {name for name in names if name.startswith("0001")} >= {
            f"0001_a/{name.replace(' ', '_')}.jpg" for name in above
        }
        drawn = Image.open(io.BytesIO(archive.read(f"0001_a/{above[0].replace(' ', '_')}.jpg")))
        expected = overlay(Image.open(files["phantom"]), prediction.maps[above[0]], 0.5)
        assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(expected)).mean() < 3
        readme = archive.read("README.txt").decode()
    assert f"0003, {rows[2].name}: " in readme  # deleted meanwhile
    assert f"0004, {rows[3].name}: The PNG image is damaged" in readme
    assert "not for diagnosis" in readme


def test_archive_of_overlays_is_bounded(rows: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_OVERLAYS_BYTES", 1)
    list(write_overlays(tmp_path / "o.zip", rows))
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"0001_a", "README.txt"}
        assert f"0002, {rows[1].name}: the archive has reached its largest size" in archive.read("README.txt").decode()


def test_names_in_archives_of_overlays_stay_below_them(
    classifier: CheXpertClassifier, files: dict[str, Path], tmp_path: Path
) -> None:
    item = Item(files["phantom"], name="..\\..\\/../é ü/..evil.png")
    list(write_overlays(tmp_path / "o.zip", list(score_items(classifier, [item], is_gated=True))))
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert all(".." not in Path(name).parts and not name.startswith("/") for name in archive.namelist())


def test_progress_says_how_far_it_is() -> None:
    html = render("progress.html", done=3, total=12, left=9.4, what="Scored")
    assert '<progress value="3" max="12">' in html
    assert "Scored: 3 of 12, about 9 s left" in html
    assert "about 2 min left" in render("progress.html", done=3, total=12, left=110, what="Scored")
    assert "left" not in render("progress.html", done=0, total=12, left=None, what="Scored")


def test_archive_that_expands_too_much_is_refused(classifier: CheXpertClassifier, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 30_000_000)
    (tmp_path / "bomb.zip").write_bytes(stream.getvalue())
    (row,) = score_items(classifier, find_items([("bomb.zip", tmp_path / "bomb.zip")], Found()), is_gated=True)
    assert row.error is not None
    assert "at most 200 times its size" in row.error
