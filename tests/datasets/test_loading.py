"""CheXpert folders: what is read, what is refused and with which words, and who ends up in which split."""

import csv
import gzip
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.datasets.image_files import find_bad_files
from chexpert_hf.datasets.loading import BadFilesError, load_dataset
from chexpert_hf.labels import OBSERVATIONS
from tests.linked_folders import LAYOUTS, as_datalad

Row = dict[str, str]


def radiograph(
    patient: int,
    cells: Row | None = None,
    *,
    split: str = "train",
    study: int = 1,
    view: int = 1,
    side: str = "frontal",
) -> Row:
    """A row of the CSV; `cells` overrides columns by name."""
    row = {
        "Path": f"CheXpert-v1.0-small/{split}/patient{patient:05}/study{study}/view{view}_{side}.jpg",
        "Sex": "Female" if patient % 2 else "Male",
        "Age": str(40 + patient % 50),
        "Frontal/Lateral": side.capitalize(),
        "AP/PA": "" if side == "lateral" else "AP" if patient % 3 else "PA",
        **dict.fromkeys(OBSERVATIONS, ""),
    }
    return row | (cells or {})


def write_table(file: Path, rows: list[Row], columns: Iterable[str] | None = None) -> Path:
    """Writes a CSV file and returns its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns or rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file.parent


def write_images(folder: Path, rows: list[Row]) -> None:
    for row in rows:
        file = folder / row["Path"].split("/", 1)[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10), 100, dtype=np.uint8)).save(file)


def labels_only(folder: Path, **options: object) -> datasets.DatasetDict:
    """Loads without looking at images, and all of train.csv, unless `options` say otherwise."""
    return load_dataset(folder, **{"splits": ["train"], "check_files": False, "valid_fraction": 0.0} | options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three patients in train, one of them with a lateral, and one in valid; with images."""
    train = [
        radiograph(1, {"Edema": "1.0", "Fracture": "-1.0", "Pneumonia": "0.0"}),
        radiograph(1, {"Edema": "1.0"}, view=2, side="lateral"),
        radiograph(2, {"No Finding": "1"}, study=3),
        radiograph(3, {"Sex": "Unknown", "Age": ""}),
    ]
    valid = [radiograph(64541, split="valid")]
    folder = write_table(tmp_path / "CheXpert-v1.0-small" / "train.csv", train)
    write_table(folder / "valid.csv", valid)
    write_images(folder, train + valid)
    return folder


# What a row holds


def test_labels_keep_the_values_of_the_csv_with_nan_for_a_blank(folder: Path) -> None:
    first = dict(zip(OBSERVATIONS, load_dataset(folder)["train"][0]["labels"], strict=True))
    assert (first["Edema"], first["Fracture"], first["Pneumonia"]) == (1.0, -1.0, 0.0)
    assert math.isnan(first["Cardiomegaly"])
    assert sum(map(math.isnan, first.values())) == 11


def test_a_row_tells_patient_study_view_and_projection(folder: Path) -> None:
    train = load_dataset(folder)["train"].remove_columns(["image", "labels"])
    assert train[1] == {
        "path": "train/patient00001/study1/view2_lateral.jpg",
        "patient": "patient00001",
        "study": "patient00001/study1",
        "view": 2,
        "sex": "Female",
        "age": 41,
        "projection": None,
        "is_frontal": False,
        "source": None,
        "labels_by": None,
    }
    assert train["projection"][:] == ["AP", None, "AP", "PA"]
    assert train["study"][2] == "patient00002/study3"
    assert (train["sex"][3], train["age"][3]) == ("Unknown", None)


def test_a_frontal_view_whose_cell_names_a_lateral_has_no_projection(tmp_path: Path) -> None:
    cells = ["AP", "LL", "PA", "RL", "pa"]
    write_table(tmp_path / "train.csv", [radiograph(number, {"AP/PA": cell}) for number, cell in enumerate(cells)])
    train = labels_only(tmp_path)["train"]
    assert train["projection"][:] == ["AP", None, "PA", None, "PA"]
    assert all(train["is_frontal"][:])


def test_labels_follow_the_order_asked_for_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [radiograph(1, {"Edema": "1", "Atelectasis": "-1"})]
    write_table(tmp_path / "train.csv", rows, ["Edema", *(name for name in reversed(rows[0]) if name != "Edema")])
    asked = ("Atelectasis", "Support Devices", "Edema")
    train = labels_only(tmp_path, observations=asked)["train"]
    np.testing.assert_array_equal(train["labels"][0], [-1, np.nan, 1])
    assert train.info.description.endswith(": Atelectasis, Support Devices, Edema")
    default = labels_only(tmp_path)["train"]
    assert default["labels"][0][OBSERVATIONS.index("Edema")] == 1


def test_observation_names_survive_filter_select_and_disk(folder: Path, tmp_path: Path) -> None:
    train = load_dataset(folder, observations=["Edema", "Fracture"])["train"]
    narrowed = train.remove_columns("image").filter(lambda row: row["is_frontal"]).select([0, 1])
    narrowed.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert saved.info.description.endswith(": Edema, Fracture")
    np.testing.assert_array_equal(saved.with_format("numpy")["labels"][:], [[1, -1], [np.nan, np.nan]])


def test_an_image_is_decoded_on_access_and_not_before(folder: Path) -> None:
    broken = folder / "train/patient00002/study3/view1_frontal.jpg"
    broken.write_bytes(b"this is no JPEG")
    train = load_dataset(folder, check_files=False)["train"]
    assert train[0]["image"].size == (10, 8)
    with pytest.raises(OSError, match="cannot identify image file"):
        train[2]["image"]


# Where the data are


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "archive/of/train/data/"])
@pytest.mark.parametrize("is_parent", [False, True])
def test_images_are_found_for_every_prefix_and_both_roots(folder: Path, prefix: str, is_parent: bool) -> None:
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("CheXpert-v1.0-small/", prefix))
    train = load_dataset(folder.parent if is_parent else folder)["train"]
    assert train["path"][0] == "train/patient00001/study1/view1_frontal.jpg"
    assert train[0]["image"].size == (10, 8)


def test_a_gzipped_table_equals_the_plain_one(folder: Path) -> None:
    plain = labels_only(folder)["train"].remove_columns("image").to_pandas()
    (folder / "train.csv.gz").write_bytes(gzip.compress((folder / "train.csv").read_bytes()))
    (folder / "train.csv").unlink()
    pd.testing.assert_frame_equal(labels_only(folder)["train"].remove_columns("image").to_pandas(), plain)


def test_labels_load_from_a_lone_table_without_images(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [radiograph(1)])
    assert labels_only(tmp_path)["train"].num_rows == 1


def test_a_folder_without_a_table_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"looked for train\.csv, valid\.csv.*Pass the folder"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"'.*nowhere' is not a folder"):
        load_dataset(tmp_path / "nowhere")


def test_two_data_sets_in_the_root_are_ambiguous(tmp_path: Path) -> None:
    for name in ("full", "small"):
        write_table(tmp_path / name / "train.csv", [radiograph(1)])
    with pytest.raises(DatasetError, match=r"several data sets \(full, small\); pass one of them"):
        load_dataset(tmp_path)


def test_a_split_without_a_table_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"No table of the test split.*test\.csv, test_labels\.csv"):
        load_dataset(folder, splits=["test"])


def test_a_test_table_of_paths_and_labels_loads(folder: Path) -> None:
    row = radiograph(64741, {"Edema": "1"}, split="test", side="lateral")
    write_table(folder / "test_labels.csv", [row], ["Path", *OBSERVATIONS])
    test = load_dataset(folder, splits=["test"], check_files=False)["test"].remove_columns("image")
    assert [test[name][0] for name in ("is_frontal", "view", "sex", "age", "projection")] == [
        False,
        1,
        None,
        None,
        None,
    ]


# Who is in which split


def many_patients(tmp_path: Path, count: int = 60) -> Path:
    rows = [radiograph(patient, study=study) for patient in range(1, count + 1) for study in (1, 2)]
    return write_table(tmp_path / "train.csv", rows)


def patients(dataset: datasets.Dataset) -> set[str]:
    return set(dataset["patient"][:])


def test_patient_never_appears_in_two_splits(tmp_path: Path) -> None:
    folder = many_patients(tmp_path)
    splits = labels_only(folder, splits=["train", "valid"], valid_fraction=0.25)
    assert not patients(splits["train"]) & patients(splits["valid"])
    assert (len(patients(splits["train"])), len(patients(splits["valid"]))) == (45, 15)
    assert splits["train"].num_rows + splits["valid"].num_rows == 120


def test_held_out_patients_do_not_depend_on_what_else_is_asked_for(tmp_path: Path) -> None:
    folder = many_patients(tmp_path)
    held_out = patients(labels_only(folder, splits=["valid"], valid_fraction=0.25)["valid"])
    assert held_out == patients(labels_only(folder, splits=["train", "valid"], valid_fraction=0.25)["valid"])
    assert held_out.isdisjoint(patients(labels_only(folder, valid_fraction=0.25)["train"]))


@pytest.mark.parametrize(("split", "count"), [("valid", 30), ("train", 90)])
def test_a_part_that_is_held_out_is_reported_and_all_can_be_taken(tmp_path: Path, split: str, count: int) -> None:
    folder, lines = many_patients(tmp_path / "hospital"), []
    labels_only(folder, splits=[split], valid_fraction=0.25, say=lines.append)
    assert lines[-1].startswith(f"hospital has no valid split: {split} is {count} of its 120 radiographs.")
    lines.clear()
    assert labels_only(folder, splits=["valid"], valid_fraction=1, say=lines.append)["valid"].num_rows == 120
    assert not lines


def test_a_larger_subset_contains_the_smaller(tmp_path: Path) -> None:
    folder = many_patients(tmp_path)
    small, large = (labels_only(folder, num_patients=count)["train"] for count in (10, 25))
    assert (len(patients(small)), small.num_rows) == (10, 20)
    assert patients(small) < patients(large)
    assert patients(small) == patients(labels_only(folder, num_patients=10)["train"])


def test_a_subset_leaves_the_valid_split_whole(tmp_path: Path) -> None:
    splits = labels_only(many_patients(tmp_path), splits=["train", "valid"], valid_fraction=0.25, num_patients=2)
    assert [len(patients(splits[name])) for name in ("train", "valid")] == [2, 15]


@pytest.mark.parametrize("count", [0, 61])
def test_a_subset_of_no_or_too_many_patients_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DatasetError, match=f"num_patients from 1 to 60, .* got {count}"):
        labels_only(many_patients(tmp_path), num_patients=count)


def test_a_patient_in_both_tables_is_a_leak(folder: Path) -> None:
    write_table(folder / "valid.csv", [radiograph(2), radiograph(9)])
    with pytest.raises(DatasetError, match=r"train and valid share 1 patients \(patient00002\)"):
        load_dataset(folder, check_files=False)


@pytest.mark.parametrize(("count", "fraction", "empty"), [(5, 0.0, "valid"), (1, 0.5, "train")])
def test_a_split_that_would_be_empty_is_refused(tmp_path: Path, count: int, fraction: float, empty: str) -> None:
    with pytest.raises(DatasetError, match=f"{empty} is empty: there is no valid split, and valid_fraction={fraction}"):
        labels_only(many_patients(tmp_path, count), splits=["train", "valid"], valid_fraction=fraction)


# What is left out


def test_laterals_can_be_left_out(folder: Path) -> None:
    assert labels_only(folder, frontal_only=True)["train"]["view"][:] == [1, 1, 1]


def test_a_split_without_frontal_radiographs_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [radiograph(1, side="lateral"), radiograph(2, side="lateral")])
    with pytest.raises(DatasetError, match="All 2 radiographs of train are laterals"):
        labels_only(tmp_path, frontal_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ["train", "val"]}, "Expected splits from train, valid, test, got 'val'"),
        ({"observations": ["Edema", "Edema"]}, "Each observation may be named once"),
        ({"valid_fraction": 1.5}, r"valid_fraction in \[0, 1\], got 1.5"),
    ],
)
def test_an_unknown_choice_is_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_only(folder, **options)


# Tables that went through other programs


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, list[Row], pd.DataFrame]:
    """A table as CheXpert has it: its folder, its rows, and what is read."""
    rows = [
        radiograph(1, {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}),
        radiograph(1, {"Edema": "1.0", "Age": ""}, view=2, side="lateral"),
        radiograph(2, {"No Finding": "1.0"}, study=3),
    ]
    folder = write_table(tmp_path / "data" / "train.csv", rows)
    return folder, rows, as_frame(folder)


def as_frame(folder: Path) -> pd.DataFrame:
    return labels_only(folder)["train"].remove_columns("image").to_pandas()


def rewrite(folder: Path, change: Callable[[str], str], encoding: str = "utf-8") -> None:
    file = folder / "train.csv"
    file.write_bytes(change(file.read_text()).encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encodings_delimiters_and_line_ends_do_not_change_a_table(
    plain: tuple[Path, list[Row], pd.DataFrame], encoding: str, delimiter: str, line_end: str
) -> None:
    folder, _, expected = plain
    rewrite(folder, lambda text: text.replace(",", delimiter).replace("\n", line_end), encoding)
    pd.testing.assert_frame_equal(as_frame(folder), expected)
    (folder / "train.csv.gz").write_bytes(gzip.compress((folder / "train.csv").read_bytes()))
    (folder / "train.csv").unlink()
    pd.testing.assert_frame_equal(as_frame(folder), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";").replace(".0", ",0"),
        lambda text: text.replace(",1.0", ',"1,0"'),
        lambda text: text.replace("Female", "F").replace("Male", "m").replace("AP,", "ap,"),
        lambda text: text.replace("Frontal,", " frontal ,").replace("41", "041Y"),
        lambda text: text.replace("/", "\\").replace("Frontal\\Lateral", "Frontal/Lateral").replace("P\\P", "P/P"),
        lambda text: text.replace("CheXpert-v1.0-small", "D:").replace("D:/", ".\\"),
    ],
    ids=["decimal comma", "quoted decimal comma", "short values", "spaces", "backslashes", "dot and backslash"],
)
def test_what_other_programs_write_is_read_as_the_same_table(
    plain: tuple[Path, list[Row], pd.DataFrame], change: Callable[[str], str]
) -> None:
    folder, _, expected = plain
    before = (folder / "train.csv").read_text()
    rewrite(folder, change)
    assert (folder / "train.csv").read_text() != before
    pd.testing.assert_frame_equal(as_frame(folder), expected)


@pytest.mark.parametrize("blank", ["nan", "NaN", "NA", "N/A", "<NA>", "null", "None", "#N/A", " "])
def test_every_spelling_of_a_blank_cell_is_a_blank(plain: tuple[Path, list[Row], pd.DataFrame], blank: str) -> None:
    folder, rows, expected = plain
    write_table(folder / "train.csv", [{name: cell or blank for name, cell in row.items()} for row in rows])
    pd.testing.assert_frame_equal(as_frame(folder), expected)


def test_capital_suffixes_and_absolute_paths_below_the_folder_lead_to_the_files(folder: Path, tmp_path: Path) -> None:
    for file in [*folder.rglob("*.jpg")]:
        file.rename(file.with_suffix(".JPG"))
    (tmp_path / "link").symlink_to(folder)
    for table in ("train.csv", "valid.csv"):
        text = (folder / table).read_text().replace(".jpg", ".JPG")
        (folder / table).write_text(text.replace("CheXpert-v1.0-small", str(tmp_path / "link"), 2))
    train = load_dataset(folder)["train"]
    assert train["path"][0] == "train/patient00001/study1/view1_frontal.JPG"
    assert [image.size for image in train["image"][:]] == [(10, 8)] * 4


# Malformed tables


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Frontal/Lateral", "LL", "Frontal/Lateral is 'LL', expected 'Frontal' or 'Lateral'"),
        ("Frontal/Lateral", "", "Frontal/Lateral is blank, expected 'Frontal'"),
        ("Frontal/Lateral", "Lateral", "Frontal/Lateral is 'Lateral', .* as in the file name view1_frontal.jpg"),
        ("Edema", "3", "Edema is '3', expected 1, 0, -1 or blank"),
        ("Edema", "1,5", "Edema is '1,5', expected 1, 0, -1 or blank"),
        ("Edema", "inf", "Edema is 'inf', expected 1, 0, -1 or blank"),
        ("AP/PA", "APL", "AP/PA is 'APL', expected AP, PA, LL, RL or blank"),
        ("Sex", "X", "Sex is 'X', expected Male, Female, Unknown or blank"),
        ("Age", "60.5", "Age is '60.5', expected whole years, 0 to 120, or blank"),
        ("Age", "-1", "Age is '-1', expected whole years"),
        ("Path", "", r"Path is blank, expected \[.../\]train/patient00001/study1/view1_frontal.jpg"),
        ("Path", "train/patient1/view1_frontal.jpg", r"Path is 'train/patient1/view1_frontal.jpg', expected"),
        ("Path", "nan", r"Path is 'nan', expected \[.../\]train"),
    ],
)
def test_a_bad_cell_is_named_with_file_row_column_value_and_expectation(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    write_table(tmp_path / "train.csv", [radiograph(1), radiograph(2), radiograph(3, {column: value}), radiograph(4)])
    with pytest.raises(DatasetError, match=rf"^train\.csv row 4: {message}") as refusal:
        labels_only(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "path",
    ["/data/", "../", "CheXpert/../../", "C:/data/", "\\\\server\\", "train/patient00002/../", "..\\", "//server/"],
)
def test_paths_that_could_leave_the_root_are_refused_and_listed(tmp_path: Path, path: str) -> None:
    tail = "train/patient00002/study1/view1_frontal.jpg"
    write_table(tmp_path / "train.csv", [radiograph(1), radiograph(2, {"Path": path + tail})])
    with pytest.raises(DatasetError, match=r"1 paths are absolute or contain '\.\.'.*: row 3 '.*patient00002"):
        labels_only(tmp_path)


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    row = radiograph(1)
    write_table(tmp_path / "train.csv", [row], [name for name in row if name not in ("Age", "Edema", "Fracture")])
    with pytest.raises(
        DatasetError, match=r"train\.csv lacks the columns 'Age', 'Edema', 'Fracture'; it has Path, Sex"
    ):
        labels_only(tmp_path)


def test_columns_of_ones_own_are_labels_and_a_wrong_name_gets_the_near_one(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [radiograph(1, {"TB": "1"}), radiograph(2, {"TB": ""})])
    labels = labels_only(tmp_path, observations=["TB", "Edema"], valid_fraction=0)["train"]["labels"]
    np.testing.assert_array_equal(labels, [[1, np.nan], [np.nan, np.nan]])
    for name in ("age", "study", "path", "view", "source", "note", "gate"):
        with pytest.raises(DatasetError, match=f"'{name}' is a reserved column name"):
            labels_only(tmp_path, observations=[name])
    for name in ("Age", "Path"):
        with pytest.raises(DatasetError, match=f"has no labels for '{name}'"):
            labels_only(tmp_path, observations=[name])
    with pytest.raises(DatasetError, match=r"no labels for 'Pleural Efusion'.* such as 'Pleural Effusion'\.$"):
        labels_only(tmp_path, observations=["Pleural Efusion"])


def test_an_observation_that_was_not_asked_for_may_be_missing(tmp_path: Path) -> None:
    row = radiograph(1, {"Edema": "1"})
    write_table(tmp_path / "train.csv", [row], [name for name in row if name != "Fracture"])
    assert labels_only(tmp_path, observations=["Edema"])["train"]["labels"][0] == [1.0]
    with pytest.raises(DatasetError, match="lacks the column 'Fracture'"):
        labels_only(tmp_path, observations=["Edema", "Fracture"])


def test_further_columns_are_left_out_whatever_they_hold(tmp_path: Path) -> None:
    # Over a megabyte, so that a reader which guesses types from its first block has decided on numbers.
    rows = [radiograph(patient, {"Site": "1"}) for patient in range(1, 12001)]
    write_table(tmp_path / "train.csv", [*rows, radiograph(12001, {"Site": "unknown"})])
    train = labels_only(tmp_path)["train"]
    assert train.num_rows == 12_001
    assert "Site" not in train.column_names


def test_a_path_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    again = radiograph(2, {"Path": "train/patient00002/study1/view1_frontal.jpg"})
    write_table(tmp_path / "train.csv", [radiograph(1), radiograph(2), radiograph(3), again])
    with pytest.raises(DatasetError, match=r"train\.csv row 5: Path is 'train/patient00002.*as in row 3 already"):
        labels_only(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv cannot be read as CSV: Empty CSV file"),
        (b"\x1f\x8b\x00 no gzip", r"train\.csv (cannot be read as CSV|lacks the columns)"),
        (
            b"Path;Sex\nx;y\n",
            r"train\.csv lacks the columns 'Age', .* and 12 more; it has Path, Sex",
        ),
        (b"Path,Sex\na,b\nc\n", r"train\.csv cannot be read as CSV: .*Row #3: Expected 2 columns, got 1"),
        (b"Path,Edema,Edema\na,1,0\n", r"train\.csv has the column 'Edema' more than once"),
        (",".join(radiograph(1)).encode() + b"\n", r"train\.csv has a header and no rows"),
    ],
)
def test_a_file_that_is_no_table_of_chexpert_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as refusal:
        labels_only(tmp_path)
    assert "\n" not in str(refusal.value)


# Files


def test_bad_files_are_counted_and_listed_before_anything_is_returned(folder: Path) -> None:
    (folder / "train/patient00001/study1/view1_frontal.jpg").unlink()
    (folder / "train/patient00002/study3/view1_frontal.jpg").write_bytes(b"")
    (folder / "valid/patient64541/study1/view1_frontal.jpg").unlink()
    with pytest.raises(DatasetError, match=r"3 of 5 files cannot be used: train/patient00001.*\(missing\)") as refusal:
        load_dataset(folder)
    assert "train/patient00002/study3/view1_frontal.jpg (empty)" in str(refusal.value)
    assert "valid/patient64541/study1/view1_frontal.jpg (missing)" in str(refusal.value)


def test_a_long_list_of_bad_files_is_cut_short(tmp_path: Path) -> None:
    folder = many_patients(tmp_path)
    with pytest.raises(DatasetError, match=r"120 of 120 files cannot be used: .* and 115 more") as refusal:
        load_dataset(folder)
    assert str(refusal.value).count("(missing)") == 5


def test_files_of_laterals_that_are_left_out_need_not_be_there(folder: Path) -> None:
    (folder / "train/patient00001/study1/view2_lateral.jpg").unlink()
    assert load_dataset(folder, frontal_only=True)["train"].num_rows == 3


@pytest.mark.parametrize("linked", ["train/patient00001/study1/view1_frontal.jpg", "train/patient00001", "train"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "elsewhere"
    (folder / linked).rename(outside)
    (folder / linked).symlink_to(outside)
    with pytest.raises(DatasetError, match=r"train/patient00001/study1/view1_frontal\.jpg \(outside the folder\)"):
        load_dataset(folder, follow_links=False)


@pytest.mark.parametrize("linked", ["train/patient00001/study1/view1_frontal.jpg", "train/patient00001", "train"])
def test_links_are_followed_and_counted(folder: Path, tmp_path: Path, linked: str) -> None:
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    lines: list[str] = []
    train = load_dataset(folder, say=lines.append)["train"]
    assert [image.size for image in train["image"][:]] == [(10, 8)] * 4
    count = {"view1_frontal.jpg": 1, "patient00001": 2, "train": 4}[linked.rpartition("/")[2]]
    assert lines == [f"Radiographs reached through links: {count} of 5."]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_sets_of_the_hub_datalad_and_dvc_load(folder: Path, layout: Callable[[Path], Path]) -> None:
    expected = load_dataset(folder)["train"].remove_columns("image").to_pandas()
    train = load_dataset(layout(folder))["train"]
    pd.testing.assert_frame_equal(train.remove_columns("image").to_pandas(), expected)
    assert train[2]["image"].size == (10, 8)


def test_content_that_has_not_been_fetched_is_named_in_words(folder: Path) -> None:
    as_datalad(folder)
    radiograph, pointer = (folder / f"train/patient0000{number}/study1/view1_frontal.jpg" for number in (1, 3))
    radiograph.resolve().unlink()
    pointer.unlink()
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(BadFilesError, match=r"git-annex link has not been fetched; run 'datalad get'") as refusal:
        load_dataset(folder)
    assert "run 'git lfs pull'" in refusal.value.faults["train/patient00003/study1/view1_frontal.jpg"]
    (folder / "train.csv").resolve().unlink()
    with pytest.raises(DatasetError, match=r"train\.csv cannot be read\. The content of this git-annex link"):
        load_dataset(folder)


def test_a_link_within_the_folder_and_a_linked_root_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "train/patient00001").rename(folder / "moved")
    (folder / "train/patient00001").symlink_to(folder / "moved")
    (folder / "train/patient00002/study3/view1_frontal.jpg").rename(folder / "moved.jpg")
    (folder / "train/patient00002/study3/view1_frontal.jpg").symlink_to(folder / "moved.jpg")
    (tmp_path / "link").symlink_to(folder)
    train = load_dataset(tmp_path / "link")["train"]
    assert train.num_rows == 4
    assert find_bad_files(tmp_path / "link", train["path"][:]) == {}


def test_a_folder_in_the_place_of_a_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "train/a.jpg").mkdir(parents=True)
    (tmp_path / "train/b.jpg").write_bytes(b"x")
    paths = ["train/a.jpg", "train/b.jpg", "train/b.jpg/c.jpg"]
    assert find_bad_files(tmp_path, paths) == {
        "train/a.jpg": "not a file",
        "train/b.jpg": "not an image",
        "train/b.jpg/c.jpg": "Not a directory",
    }


def test_twenty_bad_files_of_a_thousand_are_all_named(tmp_path: Path) -> None:
    rows = [radiograph(number) for number in range(1, 1001)]
    folder = write_table(tmp_path / "data" / "train.csv", rows)
    write_images(folder, rows)
    damage = {
        "missing": Path.unlink,
        "empty": lambda file: file.write_bytes(b""),
        "The JPEG image is damaged or cut short, expected a complete file": lambda file: os.truncate(file, 300),
        "not an image": lambda file: file.write_bytes(b"<html>404</html>"),
        "outside the folder": lambda file: file.symlink_to(file.rename(tmp_path / f"outside-{file.parts[-3]}")),
    }
    expected = {}
    for position, fault in enumerate([*damage] * 4):
        path = rows[position * 50 + 7]["Path"].removeprefix("CheXpert-v1.0-small/")
        expected[path] = fault
        damage[fault](folder / path)
    with pytest.raises(BadFilesError, match=r"20 of 1,000 files cannot be used: .* and 15 more") as refusal:
        load_dataset(folder, valid_fraction=0.1, follow_links=False)
    assert refusal.value.faults == expected
    assert "\n" not in str(refusal.value)
    refusal.value.write_list(tmp_path / "new" / "list.csv")
    listed = pd.read_csv(tmp_path / "new" / "list.csv").set_index("path")["fault"]
    assert listed.to_dict() == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_only_files_that_are_whole_pass_the_check_of_their_ends(tmp_path: Path, kind: str) -> None:
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    good = {"whole": whole, "padded": whole + bytes(13)} | ({"trailed": whole + b"trailer"} if kind == "JPEG" else {})
    cut = {str(length): whole[:length] for length in (3, 20, len(whole) // 2, len(whole) - 1)}
    cut["zeros"] = whole[:-200] + bytes(200)  # what a download leaves that reserves its room
    for name, content in (good | cut).items():
        (tmp_path / name).write_bytes(content)
    assert find_bad_files(tmp_path, [*good, *cut]).keys() == cut.keys()


def test_other_formats_pass_where_they_can_be_read(tmp_path: Path) -> None:
    for name, kind in (("a.tif", "TIFF"), ("b.bmp", "BMP")):
        Image.new("L", (64, 64), 7).save(tmp_path / name, kind)
    assert find_bad_files(tmp_path, ["a.tif", "b.bmp"]) == {}
    os.truncate(tmp_path / "b.bmp", 2000)
    assert find_bad_files(tmp_path, ["a.tif", "b.bmp"]).keys() == {"b.bmp"}


def test_without_check_files_no_image_is_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(path: str | os.PathLike[str], *args: object, **kwargs: object) -> os.stat_result:
        assert not str(path).endswith(".jpg"), f"{path} was looked at"
        return stat(path, *args, **kwargs)  # type: ignore[arg-type]

    stat = os.stat
    monkeypatch.setattr(os, "stat", touched)
    monkeypatch.setattr(os, "lstat", touched)
    with pytest.raises(AssertionError, match="was looked at"):
        load_dataset(folder)
    assert labels_only(folder)["train"].num_rows == 4


# Real tables


def test_nih_mini_loads_with_its_published_counts(real_data: Path) -> None:
    splits = load_dataset(real_data / "NIH-mini")
    assert (splits["train"].num_rows, splits["valid"].num_rows) == (582, 109)
    labels = splits["train"].with_format("numpy")["labels"][:]  # (582, 14)
    positives = dict(zip(OBSERVATIONS, (labels == 1).sum(axis=0).tolist(), strict=True))
    assert {name: count for name, count in positives.items() if count} == {
        "No Finding": 273, "Lung Opacity": 309, "Pneumonia": 309, "Atelectasis": 71, "Edema": 70,
        "Pleural Effusion": 45, "Consolidation": 25, "Lung Lesion": 21, "Pleural Other": 18,
        "Cardiomegaly": 8, "Pneumothorax": 7,
    }  # fmt: skip
    assert np.isnan(labels[labels != 1]).all()
    assert patients(splits["train"]).isdisjoint(patients(splits["valid"]))
    assert splits["valid"][0]["image"].size == (390, 390)
