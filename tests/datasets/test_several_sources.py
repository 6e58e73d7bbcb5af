"""Several data sets, label sets that share concepts, and tables with a column of splits: nothing leaks or gets lost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.datasets.hub import write_files
from chexpert_hf.datasets.label_sets import union
from chexpert_hf.datasets.loading import BadFilesError, label_set_of, load_dataset
from chexpert_hf.datasets.sources import find_layout
from chexpert_hf.labels import CHEXPERT, IGNORED, OBSERVATIONS, LabelSet

ALL = {"check_files": False, "valid_fraction": 0}


def table(folder: Path, name: str, **columns: list[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(folder / name, index=False)
    return folder


def labels(data: object) -> list[list[float]]:
    return np.asarray(data["labels"][:]).tolist()  # type: ignore[index]


def test_a_label_of_one_source_only_is_unknown_in_the_others(tmp_path: Path) -> None:
    one = table(tmp_path / "one", "labels.csv", image=["a.png"], TB=[1])
    other = table(tmp_path / "other", "labels.csv", image=["a.png"], COVID=[0])
    train = load_dataset([one, other], splits=["train"], **ALL)["train"]
    assert train.info.description.endswith(": TB, COVID")
    assert labels(train) == [[1, IGNORED], [IGNORED, 0]]
    assert train["path"][:] == ["one/a.png", "other/a.png"]


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    folders = [table(tmp_path / place / "data", "labels.csv", image=["a.png"], TB=[1]) for place in "ab"]
    with pytest.raises(DatasetError, match="Two data sets are called 'data'; rename a folder"):
        load_dataset(folders, splits=["train"], **ALL)


def test_bad_files_of_all_sources_are_listed_with_the_names_of_their_folders(tmp_path: Path) -> None:
    folders = [table(tmp_path / name, "labels.csv", image=["a.png", "b.png"], TB=[1, 0]) for name in ("one", "other")]
    (tmp_path / "other" / "b.png").touch()
    with pytest.raises(
        BadFilesError, match=r"4 of 4 files cannot be used: one/a\.png \(missing\), .*/one' and"
    ) as error:
        load_dataset(folders, splits=["train"], valid_fraction=0)
    places = ("one/a.png", "one/b.png", "other/a.png", "other/b.png")
    assert error.value.faults == dict(zip(places, ["missing", "missing", "missing", "empty"], strict=True))


def test_names_of_one_set_that_mean_the_same_all_stay(tmp_path: Path) -> None:
    folder = table(tmp_path, "labels.csv", **{"image": ["a.png"], "Lung Lesion": [1], "Nodule/Mass": [0], "TB": [1]})
    assert label_set_of(folder).names == ("Lung Lesion", "Nodule/Mass", "TB")
    assert union([LabelSet(("Effusion", "TB")), CHEXPERT]).names == (
        *("Effusion", "TB"),
        *(name for name in OBSERVATIONS if name != "Pleural Effusion"),
    )


@pytest.mark.parametrize("name", ["labels.csv", "train.csv"])
def test_a_column_of_splits_keeps_test_images_out_of_training(tmp_path: Path, name: str) -> None:
    images = [f"{number}.png" for number in range(20)]
    splits = ["train"] * 15 + ["test"] * 5
    folder = table(tmp_path, name, image=images, patient=images, TB=[0, 1] * 10, split=splits)
    for root in (folder, folder / name):
        data = load_dataset(root, check_files=False)
        assert len(data["train"]) + len(data["valid"]) == 15
        assert not set(images[15:]) & {*data["train"]["path"], *data["valid"]["path"]}
    assert load_dataset(folder / name, splits=["test"], **ALL)["test"]["path"][:] == images[15:]


def nih(folder: Path, count: int = 20) -> Path:
    names = [f"{number:08}_000.png" for number in range(count)]
    return table(
        folder,
        "Data_Entry_2017.csv",
        **{"Image Index": names, "Finding Labels": ["Nodule", "Effusion"] * (count // 2), "Patient ID": range(count)},
    )


def test_nihs_test_images_are_not_trained_on_even_without_the_list_of_the_others(tmp_path: Path) -> None:
    folder = nih(tmp_path)
    listed = [f"{number:08}_000.png" for number in range(10)]
    (folder / "test_list.txt").write_text("\n".join(listed))
    train = load_dataset(folder, splits=["train"], **ALL)["train"]
    assert len(train) == 10
    assert not set(listed) & {path.rpartition("/")[2] for path in train["path"]}
    (folder / "test_list.txt").write_text("another.png")
    with pytest.raises(DatasetError, match=r"The test split of .* has no radiograph; leave it out"):
        load_dataset(folder, splits=["test"], **ALL)


def test_broader_labels_are_implied_whatever_their_spelling(tmp_path: Path) -> None:
    folder = nih(tmp_path, 2)
    for names in (["Lung Lesion", "Lung Opacity"], ["Nodule/Mass", "Airspace opacity"]):
        train = load_dataset(folder, splits=["train"], observations=names, **ALL)["train"]
        assert labels(train) == [[1, 1], [0, 0]]


def test_columns_of_ones_own_in_chexperts_layout_are_the_default(tmp_path: Path) -> None:
    path = "train/patient{:05}/study1/view1_frontal.jpg".format
    columns = {"Path": [path(1), path(2)], "Sex": ["Male"] * 2, "Age": [50] * 2, "Frontal/Lateral": ["Frontal"] * 2}
    own = {"AP/PA": ["PA"] * 2, "TB": [1, 0], "Normal": [0, 1], "note": [1, 1]}  # a note is a column of scores
    folder = table(tmp_path, "train.csv", **columns, **own)
    train = load_dataset(folder, splits=["train"], **ALL)["train"]
    assert train.info.description.endswith(": TB, Normal")
    assert labels(train) == [[1, 0], [0, 1]]


def test_only_a_table_takes_columns_and_folders_of_masks_are_no_class(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="The layout 'nih' takes no columns, got 'image=FILE'"):
        find_layout(nih(tmp_path / "nih"), "nih:image=FILE")
    for name in ("images", "masks"):
        (tmp_path / "films" / name).mkdir(parents=True)
        (tmp_path / "films" / name / "a.png").touch()
    with pytest.raises(DatasetError, match="No table of a data set"):
        find_layout(tmp_path / "films")


def test_facts_that_are_classes_stay_facts_and_no_class_is_not_negative(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["NORMAL", "TB"]),
            "sex": datasets.ClassLabel(names=["F", "M"]),
        }
    )
    image = {"bytes": b"x", "path": "a.png"}
    rows = {"image": [image, image], "label": [1, -1], "sex": [0, 1]}
    write_files({"train": datasets.Dataset.from_dict(rows, features=features)}, tmp_path)
    train = load_dataset(tmp_path, splits=["train"], **ALL)["train"]
    assert train["sex"][:] == ["Female", "Male"]
    assert train.info.description.endswith(": NORMAL, TB")
    np.testing.assert_array_equal(np.asarray(train["labels"][:]), [[0, 1], [np.nan, np.nan]])


def test_sources_that_share_images_under_other_names_are_told(tmp_path: Path) -> None:
    siim = table(tmp_path / "siim", "train-rle.csv", ImageId=["1.2.3"], **{" EncodedPixels": ["-1"]})
    lines: list[str] = []
    load_dataset([nih(tmp_path / "nih", 2), siim], splits=["train"], say=lines.append, **ALL)
    assert any("radiographs of nih and siim are partly the same" in line for line in lines)


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    folder = nih(tmp_path, 2)
    for name in ("a", "b", "c"):  # three links: a walk that follows each would enter 3 ** 40 folders
        (folder / "images" / name).mkdir(parents=True)
        for other in ("a", "b", "c"):
            (folder / "images" / name / f"to {other}").symlink_to(folder / "images")
    (folder / "images" / "c" / "00000001_000.png").touch()
    train = load_dataset(folder, splits=["train"], **ALL)["train"]
    assert train["path"][:] == ["images/00000000_000.png", "images/c/00000001_000.png"]


def test_an_image_that_is_a_path_of_this_machine_is_not_copied(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "secret").write_bytes(b"secret")
    features = datasets.Features({"image": datasets.Image(), "TB": datasets.Value("int8")})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret")}], "TB": [1]}
    with pytest.raises(DatasetError, match="Row 0 of the split 'train' has no image in it"):
        write_files({"train": datasets.Dataset.from_dict(rows, features=features)}, tmp_path / "out")
    assert not any((tmp_path / "out" / "images" / "train").iterdir())
