import json
import pickle

import numpy as np
import pytest
from torch.nn import functional

from chexpert_hf.evaluation.localization.chexlocalize import (
    TASK_OF,
    TASKS,
    CheXlocalizeFileError,
    RunLengths,
    image_id,
    read_segmentations,
    write_map,
    write_segmentations,
)
from chexpert_hf.labels import OBSERVATIONS

# pycocotools 2.0.11 does not know numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [np.zeros((7, 4), dtype=bool), np.ones((7, 4), dtype=bool), np.ones((1, 1), dtype=bool)]
    for height, width in [(1, 1), (1, 9), (9, 1), (13, 40), (90, 31), (300, 211)]:
        masks += [rng.random((height, width)) < share for share in (0.02, 0.5, 0.98)]
    rows, columns = np.mgrid[:400, :333]
    masks.append((rows - 180) ** 2 + (columns - 100) ** 2 < 90**2)  # long runs: several characters a number
    return masks


def encoded(masks):
    return {image: {name: RunLengths.encode(mask) for name, mask in found.items()} for image, found in masks.items()}


# Run lengths


def test_run_lengths_are_those_of_pycocotools_both_ways():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in random_masks():
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = RunLengths.encode(mask)
        assert ours.counts == theirs["counts"].decode()
        assert ours.size == tuple(theirs["size"])
        decoded = ours.decode()
        assert decoded.dtype == bool
        assert np.array_equal(decoded, mask)
        assert ours.is_empty == (not mask.any())


def test_run_lengths_by_hand():
    # Down the columns: 0 0 1 1 0 1, runs 2 2 1 1; of the fourth the difference to the second is written: -1.
    mask = np.array([[0, 1, 0], [0, 1, 1]], dtype=bool)
    assert RunLengths.encode(mask) == RunLengths((2, 3), "221O")
    # In cheXlocalize's sample the empty masks of an image of 2320 x 2828 are "PVWX6", of 2022 x 2021 "nefl3".
    assert RunLengths.encode(np.zeros((2320, 2828), dtype=bool)).counts == "PVWX6"
    assert RunLengths.encode(np.ones((2022, 2021), dtype=bool)).counts == "0nefl3"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("4", "expected run lengths of 2 x 3 pixels, got 4 pixels"),
        ("9", "got 9 pixels"),
        ("2~", "Run lengths with '~'"),
        ("2P", "break off within a number"),
        ("2" + "o" * 40, "Run lengths with 'o'"),
        ("8N", "got 6 pixels"),  # a run of -2
    ],
)
def test_damaged_run_lengths_are_refused_before_memory_is_taken(counts, message):
    with pytest.raises(CheXlocalizeFileError, match=f"(?i){message}"):
        RunLengths((2, 3), counts).decode()


# Names


def test_tasks_are_ten_chexpert_observations_with_airspace_opacity_for_lung_opacity():
    assert set(TASK_OF) < set(OBSERVATIONS)
    assert tuple(TASK_OF.values()) == TASKS
    assert len(TASK_OF) == 10
    assert [pair for pair in TASK_OF.items() if pair[0] != pair[1]] == [("Lung Opacity", "Airspace Opacity")]


@pytest.mark.parametrize(
    "path",
    ["CheXpert-v1.0/valid/patient64622/study1/view1_frontal.jpg", "valid/patient64622/study1/view1_frontal.jpg"],
)
def test_image_ids_are_patient_study_and_view(path):
    assert image_id(path) == "patient64622_study1_view1_frontal"


# Segmentations


def test_segmentations_come_back_as_they_were_written(tmp_path):
    masks = {"a_study1_view1_frontal": {"Lung Opacity": random_masks()[-1], "Edema": random_masks()[-1][::-1]}}
    write_segmentations(tmp_path / "gt.json", encoded(masks))
    entries = json.loads((tmp_path / "gt.json").read_text())["a_study1_view1_frontal"]
    assert list(entries) == list(TASKS)
    assert entries["Airspace Opacity"]["size"] == [400, 333]
    read = read_segmentations(tmp_path / "gt.json")["a_study1_view1_frontal"]
    assert list(read) == list(TASK_OF)
    for name, run_lengths in read.items():
        assert np.array_equal(run_lengths.decode(), masks["a_study1_view1_frontal"].get(name, np.zeros((400, 333))))


def test_pycocotools_reads_what_is_written(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    mask = random_masks()[-2]
    write_segmentations(tmp_path / "gt.json", encoded({"a": {"Cardiomegaly": mask, "Pneumonia": ~mask}}))
    entries = json.loads((tmp_path / "gt.json").read_text())["a"]
    assert np.array_equal(coco.decode(entries["Cardiomegaly"]) > 0, mask)
    assert not coco.decode(entries["Edema"]).any()
    assert "Pneumonia" not in entries


def test_masks_of_several_sizes_are_not_written(tmp_path):
    masks = {"Edema": np.ones((2, 2), dtype=bool), "Cardiomegaly": np.ones((2, 3), dtype=bool)}
    with pytest.raises(ValueError, match="masks of one size for a"):
        write_segmentations(tmp_path / "gt.json", encoded({"a": masks}))


GOOD = {task: {"size": [2, 3], "counts": "6"} for task in TASKS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "an object with an entry for each image id"),
        ('{"a": 1}', "'a': expected an object with a mask for each task"),
        (
            json.dumps({"a": {key: GOOD[key] for key in TASKS[1:]}}),
            "lacks Enlarged Cardiomediastinum; expected all ten",
        ),
        (json.dumps({"a": {**GOOD, "Edema": {"size": [3, 3], "counts": "9"}}}), "have several sizes"),
        (json.dumps({"a": {**GOOD, "Edema": {"size": [2, 3], "counts": [6]}}}), "Edema: expected {.size.: "),
        (json.dumps({"a": {**GOOD, "Edema": {"size": [2.0, 3], "counts": "6"}}}), "Edema: expected"),
        (json.dumps({"a": {**GOOD, "Edema": {"size": [True, 3], "counts": "6"}}}), "Edema: expected"),
        (json.dumps({"a": {**GOOD, "Edema": {"size": [10**6, 10**6], "counts": "6"}}}), "at most 50,000,000 pixels"),
        (json.dumps({"a": {**GOOD, "Edema": None}}), "got None"),
    ],
)
def test_a_file_that_is_not_of_segmentations_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "gt.json"
    file.write_text(content)
    with pytest.raises(CheXlocalizeFileError, match=message) as caught:
        read_segmentations(file)
    assert "\n" not in str(caught.value)


# Map pickles


def test_written_maps_are_what_chexlocalizes_scripts_read(tmp_path):
    rng = np.random.default_rng(4)
    saliency, picture = rng.random((4, 5), dtype=np.float32), rng.random((8, 9), dtype=np.float32)
    path = write_map(
        tmp_path, "patient1_study1_view1_frontal", "Lung Opacity", saliency,
        probability=0.25, is_positive=True, size=(39, 32), picture=picture,
    )  # fmt: skip
    assert path.name == "patient1_study1_view1_frontal_Airspace Opacity_map.pkl"
    info = pickle.loads(path.read_bytes())  # ours: this test wrote it
    # What its README documents, and what its scripts do with it.
    assert list(info) == ["map", "prob", "task", "gt", "cxr_img", "cxr_dims"]
    assert (info["prob"], info["task"], info["gt"], info["cxr_dims"]) == (0.25, "Airspace Opacity", 1, (39, 32))
    assert np.array_equal(info["map"], saliency[None, None])
    assert np.array_equal(info["cxr_img"], np.stack([picture] * 3))
    width, height = info["cxr_dims"]
    resized = functional.interpolate(info["map"], size=(height, width), mode="bilinear", align_corners=False)
    assert resized.squeeze().shape == (32, 39)
    *image, task, _ = path.name.split("_")
    assert ("_".join(image), task) == ("patient1_study1_view1_frontal", "Airspace Opacity")
