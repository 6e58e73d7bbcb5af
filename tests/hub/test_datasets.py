"""Data sets of the Hub: fetched once, and read as any folder."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.datasets.hub import write_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.datasets.sources import find_layout
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.radiographs.radiograph import read_radiograph

from .stand_in import Fault, Hub

CHEXPERT_CLASSES = ["unlabeled", "uncertain", "absent", "present"]  # 0 to 3, in copies of CheXpert on the Hub


def jpeg(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 32), level, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def rows(labels: dict[str, list[object]], features: dict[str, object]) -> datasets.Dataset:
    """A data set with images inside, whose gray level is ten times the row's number."""
    count = len(next(iter(labels.values())))
    images = [{"bytes": jpeg(10 * number), "path": f"{number}.jpg"} for number in range(count)]
    types = datasets.Features({"image": datasets.Image(), **features})
    return datasets.Dataset.from_dict({"image": images, **labels}, features=types)


def labels_of(folder: Path, split: str = "train", **options: object) -> tuple[list[str], np.ndarray]:
    data = load_dataset(folder, splits=[split], valid_fraction=0, **options)[split]
    return data.info.description.split(": ")[1].split(", "), np.array(data["labels"][:])


def test_classes_of_chexperts_copies_are_its_cells(tmp_path: Path) -> None:
    features = dict.fromkeys(OBSERVATIONS[:2], datasets.ClassLabel(names=CHEXPERT_CLASSES))
    data = rows({OBSERVATIONS[0]: [0, 1, 2, 3], OBSERVATIONS[1]: [3, 2, 1, 0]}, features)
    write_files({"train": data}, tmp_path)
    names, labels = labels_of(tmp_path)
    assert names == list(OBSERVATIONS[:2])
    np.testing.assert_array_equal(labels, [[np.nan, 1], [-1, 0], [0, -1], [1, np.nan]])


def test_one_class_per_row_or_a_list_of_them_are_columns(tmp_path: Path) -> None:
    one = rows({"label": [1, 0]}, {"label": datasets.ClassLabel(names=["NORMAL", "PNEUMONIA"])})
    several = rows({"labels": [[0, 2], []]}, {"labels": datasets.List(datasets.ClassLabel(names=["A", "B", "C"]))})
    write_files({"train": one}, tmp_path / "one")
    write_files({"train": several}, tmp_path / "several")
    assert labels_of(tmp_path / "one")[0] == ["NORMAL", "PNEUMONIA"]
    np.testing.assert_array_equal(labels_of(tmp_path / "one")[1], [[0, 1], [1, 0]])
    np.testing.assert_array_equal(labels_of(tmp_path / "several")[1], [[1, 0, 1], [0, 0, 0]])


def test_facts_and_splits_are_kept_and_a_stream_is_read(tmp_path: Path) -> None:
    features = {"TB": datasets.Value("bool"), "patient_id": datasets.Value("string"), "age": datasets.Value("int32")}
    data = rows({"TB": [True, False], "patient_id": ["a", "b"], "age": [30, None]}, features)
    write_files({"train": data.to_iterable_dataset(), "validation": data.to_iterable_dataset()}, tmp_path)
    valid = load_dataset(tmp_path, splits=["valid"])["valid"]
    assert (valid["patient"][:], valid["age"][:]) == (["a", "b"], [30, None])
    assert np.array(valid["labels"][:]).tolist() == [[1], [0]]
    levels = [read_radiograph(tmp_path / path).convert("L").getpixel((5, 5)) for path in valid["path"]]
    assert levels == pytest.approx([0, 10], abs=1)


def test_what_has_no_images_or_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'train' has no column of images; it has label"):
        write_files({"train": datasets.Dataset.from_dict({"label": [1]})}, tmp_path / "a")
    data = rows({"TB": [1]}, {"TB": datasets.Value("int8")})
    with pytest.raises(DatasetError, match="split 'everything'; expected train, valid, validation"):
        write_files({"everything": data}, tmp_path / "b")


@pytest.fixture
def hub_of_data(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


def test_a_data_set_is_streamed_by_its_id_once(hub_of_data: Hub, tmp_path: Path) -> None:
    rows({"TB": [1, 0, 1]}, {"TB": datasets.Value("int8")}).to_parquet(tmp_path / "data.parquet")
    repository = hub_of_data.add("somebody/films", "dataset")
    repository.commit({"data/train-00000-of-00001.parquet": (tmp_path / "data.parquet").read_bytes()}, "data")
    names, labels = labels_of("somebody/films")
    assert (names, labels.tolist()) == (["TB"], [[1], [0], [1]])
    _, folder = find_layout("somebody/films")
    before = (folder / "train.csv").stat().st_mtime_ns
    assert labels_of("somebody/films")[1].tolist() == [[1], [0], [1]]
    assert (folder / "train.csv").stat().st_mtime_ns == before
    # Of a data set of 100 GB nothing but the images is kept.
    assert not [*tmp_path.glob("hub/**/*.parquet"), *tmp_path.glob("cache/**/*.parquet")]
    hub_of_data.faults = [Fault("somebody/films", 0)] * 20  # connections break
    assert find_layout("somebody/films")[1] == folder


def test_a_stream_that_breaks_leaves_no_folder(hub_of_data: Hub, tmp_path: Path) -> None:
    repository = hub_of_data.add("somebody/films", "dataset")
    repository.commit({"data/train-00000-of-00001.parquet": b"PAR1 and no more"}, "data")
    with pytest.raises(DatasetError, match="no data set of this name can be fetched"):
        load_dataset("somebody/films")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("images", "train.csv")]


def test_a_repository_of_files_is_its_own_folder(hub_of_data: Hub) -> None:
    repository = hub_of_data.add("somebody/table", "dataset")
    repository.commit({"train.csv": b"image,TB\na.jpg,1\nb.jpg,0\n", "a.jpg": jpeg(1), "b.jpg": jpeg(2)}, "data")
    assert labels_of("somebody/table")[1].tolist() == [[1], [0]]


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_one_line(hub_of_data: Hub) -> None:
    with pytest.raises(DatasetError, match="no folder nobody/nothing, and no data set of this name can be fetched"):
        load_dataset("nobody/nothing")
