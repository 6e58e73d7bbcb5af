import io
import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.nn import functional

from chexpert_hf.evaluation.localization.array_pickle import PickleError, load_arrays
from chexpert_hf.evaluation.localization.chexlocalize import (
    LOCALIZED_OBSERVATIONS,
    TASKS,
    CheXlocalizeFileError,
    MapFile,
    RunLengths,
    image_id,
    read_map,
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
    assert set(LOCALIZED_OBSERVATIONS) < set(OBSERVATIONS)
    assert len(TASKS) == len(set(LOCALIZED_OBSERVATIONS)) == 10
    different = [pair for pair in zip(TASKS, LOCALIZED_OBSERVATIONS, strict=True) if pair[0] != pair[1]]
    assert different == [("Airspace Opacity", "Lung Opacity")]


@pytest.mark.parametrize(
    "path",
    ["CheXpert-v1.0/valid/patient64622/study1/view1_frontal.jpg", "valid/patient64622/study1/view1_frontal.jpg"],
)
def test_image_ids_are_patient_study_and_view(path):
    assert image_id(path) == "patient64622_study1_view1_frontal"


# Segmentations


def test_segmentations_come_back_as_they_were_written(tmp_path):
    masks = {"a_study1_view1_frontal": {"Lung Opacity": random_masks()[-1], "Edema": random_masks()[-1][::-1]}}
    write_segmentations(tmp_path / "gt.json", masks)
    entries = json.loads((tmp_path / "gt.json").read_text())["a_study1_view1_frontal"]
    assert list(entries) == list(TASKS)
    assert entries["Airspace Opacity"]["size"] == [400, 333]
    read = read_segmentations(tmp_path / "gt.json")["a_study1_view1_frontal"]
    assert list(read) == list(LOCALIZED_OBSERVATIONS)
    for name, encoded in read.items():
        assert np.array_equal(encoded.decode(), masks["a_study1_view1_frontal"].get(name, np.zeros((400, 333))))


def test_pycocotools_reads_what_is_written(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    mask = random_masks()[-2]
    write_segmentations(tmp_path / "gt.json", {"a": {"Cardiomegaly": mask, "Pneumonia": ~mask}})
    entries = json.loads((tmp_path / "gt.json").read_text())["a"]
    assert np.array_equal(coco.decode(entries["Cardiomegaly"]) > 0, mask)
    assert not coco.decode(entries["Edema"]).any()
    assert "Pneumonia" not in entries


def test_masks_of_several_sizes_are_not_written(tmp_path):
    masks = {"Edema": np.ones((2, 2), dtype=bool), "Cardiomegaly": np.ones((2, 3), dtype=bool)}
    with pytest.raises(ValueError, match="masks of one size for a"):
        write_segmentations(tmp_path / "gt.json", {"a": masks})


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


def a_map() -> MapFile:
    rng = np.random.default_rng(4)
    return MapFile(
        observation="Lung Opacity",
        saliency=rng.random((4, 5), dtype=np.float32),
        probability=0.25,
        is_positive=True,
        size=(39, 32),
        image=rng.random((8, 9), dtype=np.float32),
    )


def test_maps_come_back_as_they_were_written(tmp_path):
    path = write_map(tmp_path, "patient1_study1_view1_frontal", a_map())
    assert path.name == "patient1_study1_view1_frontal_Airspace Opacity_map.pkl"
    read = read_map(path)
    assert np.array_equal(read.saliency, a_map().saliency)
    assert np.array_equal(read.image, a_map().image)
    for name in ("observation", "probability", "is_positive", "size"):
        assert getattr(read, name) == getattr(a_map(), name)


def test_written_maps_are_what_chexlocalizes_scripts_read(tmp_path):
    path = write_map(tmp_path, "patient1_study1_view1_frontal", a_map())
    info = pickle.loads(path.read_bytes())  # ours: this test wrote it
    # What its README documents, and what its scripts do with it.
    assert list(info) == ["map", "prob", "task", "gt", "cxr_img", "cxr_dims"]
    assert (info["prob"], info["task"], info["gt"], info["cxr_dims"]) == (0.25, "Airspace Opacity", 1, (39, 32))
    assert info["map"].shape == (1, 1, 4, 5)
    assert info["cxr_img"].shape == (3, 8, 9)
    width, height = info["cxr_dims"]
    resized = functional.interpolate(info["map"], size=(height, width), mode="bilinear", align_corners=False)
    assert resized.squeeze().shape == (32, 39)
    *image, task, _ = path.name.split("_")
    assert ("_".join(image), task) == ("patient1_study1_view1_frontal", "Airspace Opacity")


def like_theirs(**changes: object) -> dict[str, object]:
    values = {
        "map": torch.arange(6.0).reshape(1, 1, 2, 3),
        "prob": 0.5,
        "task": "Edema",
        "gt": 0,
        "cxr_img": torch.zeros(3, 4, 4),
        "cxr_dims": (30, 20),
    }
    return {**values, **changes}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prob": np.float64(0.5), "gt": np.int64(0)},
        {"prob": torch.tensor(0.5), "gt": torch.tensor(0), "cxr_dims": torch.Size([30, 20])},
        {"map": np.arange(6.0, dtype=">f4").reshape(1, 1, 2, 3), "cxr_img": np.zeros((3, 4, 4))},
        {"map": torch.arange(-1, 6, 0.5)[2:].reshape(1, 1, 2, 6)[..., ::2]},
        {"map": np.asfortranarray(np.arange(6.0).reshape(1, 1, 2, 3))},
        {"map": torch.arange(6.0, requires_grad=True).reshape(1, 1, 2, 3).detach()},
    ],
)
def test_arrays_of_numpy_and_torch_are_read(tmp_path, changes, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(like_theirs(**changes), protocol=protocol))
    read = read_map(path)
    assert np.array_equal(read.saliency, [[0, 1, 2], [3, 4, 5]])
    assert (read.probability, read.is_positive, read.observation, read.size) == (0.5, False, "Edema", (30, 20))


def test_names_of_numpy_before_2_are_known(tmp_path):
    data = pickle.dumps(like_theirs(map=np.arange(6.0).reshape(1, 1, 2, 3)), protocol=2)
    assert b"numpy._core" in data
    path = tmp_path / "old.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_map(path).saliency[1, 2] == 5


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_storage() -> bytes:
    """What torch.load would run if it were not told to load weights only."""
    stream = io.BytesIO()
    torch.save(Calls(os.mkdir, "owned"), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


HOSTILE = {
    "a function": pickle.dumps(Calls(os.mkdir, "owned")),
    "builtins": pickle.dumps(Calls(eval, "__import__('os').mkdir('owned')")),
    "a storage": pickle.dumps(Calls(torch.storage._load_from_bytes, hostile_storage())),
    "a module's attribute": b"cnumpy\nload\n(S'x'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.__init__.__self__\x93.",
    "a codec": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    "objects in an array": pickle.dumps(np.array([Calls(os.mkdir, "owned")], dtype=object)),
    "a changed builder": b"ctorch._utils\n_rebuild_tensor_v2\n(dS'_build'\nNsb.",
    "a view outside of its storage": pickle.dumps(
        Calls(torch._utils._rebuild_tensor_v2, torch.zeros(2)._typed_storage(), 0, (1000,), (1,), False, OrderedDict())
    ),
    "a view of everything": pickle.dumps(
        Calls(
            torch._utils._rebuild_tensor_v2,
            torch.zeros(2)._typed_storage(),
            0,
            (10**9, 10**9),
            (0, 0),
            False,
            OrderedDict(),
        )
    ),
    "data outside of it": b"\x80\x04\x8c\x01xQ.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_is_refused_in_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pkl"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(CheXlocalizeFileError, match=r"x\.pkl: the pickle ") as caught:
        read_map(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_the_hostile_pickles_are_hostile(tmp_path, monkeypatch):
    for kind in ("a function", "builtins", "a storage", "objects in an array"):
        (tmp_path / kind).mkdir()
        monkeypatch.chdir(tmp_path / kind)
        pickle.loads(HOSTILE[kind])
        assert (tmp_path / kind / "owned").exists()


def test_a_refused_change_leaves_the_reader_as_it_was():
    with pytest.raises(PickleError, match="changes what it was given"):
        load_arrays(HOSTILE["a changed builder"])
    assert np.array_equal(load_arrays(pickle.dumps(torch.ones(2)))[0], 1)


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([b"a"]), np.zeros(1, dtype="V8"), np.datetime64("nat")])
def test_arrays_of_anything_but_numbers_are_refused(values):
    with pytest.raises(PickleError, match="expected numbers"):
        load_arrays(pickle.dumps(values))


def test_every_truncation_of_a_pickle_is_refused_in_one_line():
    data = pickle.dumps(like_theirs())
    assert isinstance(load_arrays(data), dict)
    for length in range(0, len(data), 7):
        with pytest.raises(PickleError, match="the pickle") as caught:
            load_arrays(data[:length])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "expected a dictionary, got list"),
        ({"map": 1}, "lacks prob, task, gt, cxr_img, cxr_dims"),
        (like_theirs(map=torch.zeros(2, 3, 4)), r"shape \(1, 1, h, w\), got \(2, 3, 4\)"),
        (like_theirs(map=torch.full((1, 1, 2, 2), float("nan"))), "expected a finite map"),
        (like_theirs(cxr_img=torch.zeros(4)), r"cxr_img of shape \(channels, height, width\)"),
        (like_theirs(cxr_dims=7), "not iterable"),
        (like_theirs(prob="high"), "could not convert"),
    ],
)
def test_a_pickle_of_something_else_is_refused_in_one_line(tmp_path, values, message):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(values))
    with pytest.raises(CheXlocalizeFileError, match=message):
        read_map(path)
    with pytest.raises(CheXlocalizeFileError, match="No such file"):
        read_map(tmp_path / "none.pkl")
