"""The phantoms: same seed same patient, findings where their masks say, labels that agree with one another."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from chexpert_hf.files import FolderError
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import Phantom, render_phantom, write_phantoms
from chexpert_hf.phantoms.folder import PREVALENCES, UNCERTAIN_RATES, report_cells, sample_truth
from chexpert_hf.phantoms.frame import LEFT, RIGHT, FrontalFrame, Patient
from chexpert_hf.phantoms.rendering import CHILDREN, make_frame

FINDINGS = [name for name in OBSERVATIONS if name != "No Finding"]
SHOWN_IN_LATERAL = [
    name for name in FINDINGS if name not in ("Enlarged Cardiomediastinum", "Pneumothorax", "Pleural Other", "Fracture")
]
SEEDS = range(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "phantom-small"
    write_phantoms(root, num_studies=60, seed=3)
    return root


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def num_studies(root: Path) -> dict[str, int]:
    return {split: len(list((root / split).glob("patient*/study*"))) for split in ("train", "valid")}


def heart_breadth(mask: NDArray[np.bool_]) -> int:
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0] + 1)


@cache
def normal_image(seed: int, projection: str) -> NDArray[np.uint8]:
    return render_phantom(seed, projection=projection).image


def side_by_side(observation: str, projection: str) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_], Phantom]]:
    """Per seed: absolute change of the grey levels when the observation is planted, its mask, and the phantom."""
    for seed in SEEDS:
        planted = render_phantom(seed, [observation], projection=projection)
        yield np.abs(planted.image.astype(int) - normal_image(seed, projection)), planted.masks[observation], planted


# One phantom


@pytest.mark.parametrize("projection", ["PA", "AP", "Lateral"])
def test_same_seed_gives_the_same_pixels_and_another_seed_others(projection: str) -> None:
    first, again, other = (render_phantom(seed, ["Edema"], projection=projection) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks["Edema"], again.masks["Edema"])
    assert first.image.shape != other.image.shape or np.mean(first.image != other.image) > 0.5


def test_images_are_8_bit_and_about_as_large_as_those_of_chexpert_small() -> None:
    shapes = set()
    for seed in range(12):
        phantom = render_phantom(seed, projection=("PA", "AP", "Lateral")[seed % 3])
        assert phantom.image.dtype == np.uint8
        assert min(phantom.image.shape) == 320
        assert 380 <= max(phantom.image.shape) <= 395
        assert phantom.image.std() > 40
        shapes.add(phantom.image.shape)
    assert len(shapes) > 3


@pytest.mark.parametrize("projection", ["PA", "AP"])
@pytest.mark.parametrize("observation", FINDINGS)
def test_a_finding_changes_the_image_inside_its_mask_and_hardly_elsewhere(observation: str, projection: str) -> None:
    for change, mask, _ in side_by_side(observation, projection):
        near = ndimage.binary_dilation(mask, iterations=8)
        assert mask.any()
        assert change[mask].mean() > 10 * change[~near].mean()
        visible = change > 20
        assert visible[mask].any()
        assert (visible & ~near).sum() < 0.1 * visible.sum()


@pytest.mark.parametrize("observation", SHOWN_IN_LATERAL)
def test_findings_of_the_lateral_view_lie_in_their_masks_too(observation: str) -> None:
    for change, mask, _ in side_by_side(observation, "Lateral"):
        assert change[mask].mean() > 5 * change[~ndimage.binary_dilation(mask, iterations=8)].mean()


def test_what_a_lateral_view_does_not_show_has_no_mask_and_changes_nothing() -> None:
    hidden = [name for name in FINDINGS if name not in SHOWN_IN_LATERAL]
    planted = render_phantom(1, hidden, projection="Lateral")
    assert planted.masks == {}
    assert np.array_equal(planted.image, render_phantom(1, projection="Lateral").image)


def test_masks_are_boolean_and_of_the_size_of_the_image() -> None:
    phantom = render_phantom(2, FINDINGS)
    assert list(phantom.masks) == FINDINGS
    for mask in phantom.masks.values():
        assert mask.dtype == bool
        assert mask.shape == phantom.image.shape
        assert 0.002 < mask.mean() < 0.5


def test_a_normal_chest_has_no_masks_and_may_be_asked_for_by_name() -> None:
    assert render_phantom(4).masks == {}
    assert np.array_equal(render_phantom(4).image, render_phantom(4, ["No Finding"]).image)
    assert list(render_phantom(4, ["No Finding", "Support Devices"]).masks) == ["Support Devices"]


@pytest.mark.parametrize(("parent", "child"), [(parent, child) for parent in CHILDREN for child in CHILDREN[parent]])
def test_an_implied_parent_has_the_mask_of_its_child(parent: str, child: str) -> None:
    alone = render_phantom(7, [child])
    assert np.array_equal(alone.masks[parent], alone.masks[child])
    assert np.array_equal(alone.image, render_phantom(7, [parent, child]).image)


def test_the_mask_of_a_parent_is_the_union_of_its_children() -> None:
    for seed in SEEDS:
        masks = render_phantom(seed, ["Atelectasis", "Lung Lesion"]).masks
        assert (masks["Lung Lesion"] & ~masks["Atelectasis"]).any()
        assert np.array_equal(masks["Lung Opacity"], masks["Atelectasis"] | masks["Lung Lesion"])


def test_another_process_draws_the_same_pixels() -> None:
    # Sets of names iterate in another order wherever strings hash differently; pixels must not follow them.
    program = (
        "import hashlib\n"
        "from chexpert_hf.phantoms import render_phantom\n"
        "from chexpert_hf.labels import OBSERVATIONS\n"
        "print(hashlib.sha256(render_phantom(3, OBSERVATIONS[1:]).image.tobytes()).hexdigest())"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


# Radiographic convention


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_the_heart_lies_mostly_on_the_right_of_the_image(projection: str) -> None:
    for seed in SEEDS:
        planted = render_phantom(seed, ["Cardiomegaly"], projection=projection)
        heart = np.argwhere(planted.masks["Cardiomegaly"]).mean(axis=0)[1]
        spine = np.median(np.argmax(ndimage.gaussian_filter(planted.image[-60:-20].astype(float), 6), axis=1))
        assert heart > spine


def test_air_is_dark_and_the_abdomen_is_bright() -> None:
    for seed in SEEDS:
        planted = render_phantom(seed, ["Pneumothorax", "Cardiomegaly"])
        image = planted.image.astype(float)
        assert image[planted.masks["Cardiomegaly"]].mean() > 170
        assert image[planted.masks["Pneumothorax"] & ~planted.masks["Cardiomegaly"]].mean() < 90


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_cardiomegaly_raises_the_cardiothoracic_ratio_above_one_half(projection: str) -> None:
    for seed in SEEDS:
        heart = heart_breadth(render_phantom(seed, ["Cardiomegaly"], projection=projection).masks["Cardiomegaly"])
        frame = make_frame(Patient((seed,)), (seed,), (), projection)
        assert isinstance(frame, FrontalFrame)
        thorax = float((frame.wall[LEFT] - frame.wall[RIGHT]).max())
        assert 0.53 < heart / thorax < 0.85
        assert 0.3 < heart_breadth(frame.heart_mask()) / thorax < (0.5 if projection == "PA" else 0.53)


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_pleural_effusion_lies_in_the_lower_thorax(projection: str) -> None:
    for seed in SEEDS:
        fluid = np.argwhere(render_phantom(seed, ["Pleural Effusion"], projection=projection).masks["Pleural Effusion"])
        frame = make_frame(Patient((seed,)), (seed,), (), projection)
        assert isinstance(frame, FrontalFrame)
        assert frame.v[round(fluid[:, 0].mean())] > 0.7
        assert frame.v[fluid[:, 0].min()] > 0.3
        lowest_lung = np.concatenate([frame.dome[RIGHT], frame.dome[LEFT]]).max()
        assert fluid[:, 0].max() <= lowest_lung + 3


def test_edema_and_the_widened_mediastinum_are_on_both_sides_of_the_midline() -> None:
    for seed in SEEDS:
        masks = render_phantom(seed, ["Edema", "Enlarged Cardiomediastinum"]).masks
        frame = make_frame(Patient((seed,)), (seed,), (), "PA")
        assert isinstance(frame, FrontalFrame)
        for mask in masks.values():
            right = (mask & (frame.x < frame.midline[:, None])).sum()
            assert 0.2 < right / mask.sum() < 0.8


def test_the_same_finding_lies_at_the_same_height_in_both_views_of_a_study() -> None:
    for seed in SEEDS:
        heights = []
        for projection in ("PA", "Lateral"):
            mask = render_phantom(seed, ["Lung Lesion"], projection=projection).masks["Lung Lesion"]
            frame = make_frame(Patient((seed,)), (seed,), (), projection)
            heights.append(frame.v[round(np.argwhere(mask)[:, 0].mean())])
        assert heights[0] == pytest.approx(heights[1], abs=0.08)


def test_an_unknown_observation_or_projection_and_a_contradiction_are_refused() -> None:
    with pytest.raises(ValueError, match="'Cardiomegalia' is not a known observation"):
        render_phantom(0, ["Cardiomegalia"])
    with pytest.raises(ValueError, match="Unknown projection 'LL'; expected one of: PA, AP, Lateral"):
        render_phantom(0, projection="LL")
    with pytest.raises(ValueError, match="No Finding excludes other findings"):
        render_phantom(0, ["No Finding", "Edema"])
    with pytest.raises(ValueError, match="seed of at least 0"):
        render_phantom(-1)


# Labels


def test_no_finding_means_that_nothing_but_devices_is_there() -> None:
    rng = np.random.default_rng(0)
    with_devices = 0
    for _ in range(400):
        truth = sample_truth(rng)
        assert ("No Finding" in truth) == (not truth - {"No Finding", "Support Devices"})
        with_devices += {"No Finding", "Support Devices"} == truth
    assert with_devices > 0


def test_children_imply_their_parents() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        truth = sample_truth(rng)
        for parent, children in CHILDREN.items():
            assert parent in truth or not truth & set(children)


def test_every_observation_is_positive_often_enough_to_be_learnt() -> None:
    rng = np.random.default_rng(2)
    truths = [sample_truth(rng) for _ in range(2000)]
    for name in OBSERVATIONS:
        assert sum(name in truth for truth in truths) > 0.08 * 2000
    assert set(PREVALENCES) == set(FINDINGS)


def test_uncertain_cells_are_as_frequent_as_in_chexpert() -> None:
    num_studies = 12_000
    rng = np.random.default_rng(3)
    counts = dict.fromkeys(OBSERVATIONS, 0)
    for _ in range(num_studies):
        for name, cell in report_cells(sample_truth(rng), rng).items():
            counts[name] += cell == -1
    for name, rate in UNCERTAIN_RATES.items():
        deviation = (rate * (1 - rate) / num_studies) ** 0.5
        assert abs(counts[name] / num_studies - rate) <= 4 * deviation, name
    assert UNCERTAIN_RATES["Atelectasis"] == pytest.approx(29_377 / 187_641)


# The folder


def test_csv_files_have_the_columns_of_chexpert(folder: Path) -> None:
    for name in ("train.csv", "valid.csv"):
        rows = read(folder / name)
        assert list(rows[0]) == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS]
        for row in rows:
            assert row["Sex"] in ("Male", "Female")
            assert 18 <= int(row["Age"]) <= 90
            is_lateral = row["Path"].endswith("_lateral.jpg")
            assert row["Frontal/Lateral"] == ("Lateral" if is_lateral else "Frontal")
            assert row["AP/PA"] in ([""] if is_lateral else ["AP", "PA"])


def test_every_row_is_an_image_and_every_image_a_row(folder: Path) -> None:
    paths = [row["Path"] for name in ("train.csv", "valid.csv") for row in read(folder / name)]
    assert sorted(paths) == sorted(str(file.relative_to(folder.parent)) for file in folder.rglob("*.jpg"))
    assert len(set(paths)) == len(paths)
    assert paths == [row["Path"] for row in read(folder / "truth.csv")]
    laterals = sum(path.endswith("view2_lateral.jpg") for path in paths)
    assert 0.2 < laterals / 60 < 0.5


def test_truth_agrees_with_every_certain_cell_and_knows_the_others(folder: Path) -> None:
    truth = {row["Path"]: row for row in read(folder / "truth.csv")}
    uncertain = []
    for row in read(folder / "train.csv"):
        for name in OBSERVATIONS:
            hidden = truth[row["Path"]][name]
            assert hidden in ("0", "1")
            if row[name] == "-1.0":
                uncertain.append(hidden)
            else:
                assert row[name] in (("1.0",) if hidden == "1" else ("0.0", ""))
    assert 0.1 < uncertain.count("1") / len(uncertain) < 0.7


def test_a_study_without_finding_is_certain_of_it(folder: Path) -> None:
    for row in read(folder / "train.csv"):
        assert row["No Finding"] in ("1.0", "")
        if row["No Finding"] == "1.0":
            assert all(row[name] in ("0.0", "") for name in FINDINGS if name != "Support Devices")


def test_valid_has_the_truth_and_no_uncertain_or_blank_cell(folder: Path) -> None:
    truth = {row["Path"]: row for row in read(folder / "truth.csv")}
    for row in read(folder / "valid.csv"):
        assert [row[name] for name in OBSERVATIONS] == [f"{truth[row['Path']][name]}.0" for name in OBSERVATIONS]


def test_no_patient_is_in_both_splits_and_some_have_two_studies(folder: Path) -> None:
    patients = {
        split: {Path(row["Path"]).parts[2] for row in read(folder / f"{split}.csv")} for split in ("train", "valid")
    }
    assert patients["train"]
    assert patients["valid"]
    assert not patients["train"] & patients["valid"]
    assert sum(1 for _ in folder.glob("*/*/study2")) == 60 // 6


def test_no_patient_has_the_id_of_a_real_one(folder: Path) -> None:
    # ChestX-ray14 has patients up to 30805, CheXpert up to 65240.
    names = {Path(row["Path"]).parts[2] for row in read(folder / "truth.csv")}
    assert min(int(name.removeprefix("patient")) for name in names) > 900_000


def test_all_rows_of_a_study_have_the_same_labels(folder: Path) -> None:
    by_study: dict[str, set[tuple[str, ...]]] = {}
    for row in read(folder / "train.csv"):
        by_study.setdefault(row["Path"].rsplit("/", 1)[0], set()).add(tuple(row[name] for name in OBSERVATIONS))
    assert all(len(labels) == 1 for labels in by_study.values())


def test_masks_are_there_for_what_is_positive_and_for_nothing_else(folder: Path) -> None:
    for row in read(folder / "truth.csv"):
        image = folder.parent / row["Path"]
        masks = {file.stem for file in (folder / "masks" / image.relative_to(folder)).with_suffix("").glob("*.png")}
        positive = {name for name in FINDINGS if row[name] == "1"}
        assert masks == positive if "frontal" in image.name else masks <= positive
    mask = Image.open(next((folder / "masks").rglob("*.png")))
    assert mask.mode == "1"


def test_a_study_does_not_depend_on_how_many_others_there_are(folder: Path, tmp_path: Path) -> None:
    reported: list[int] = []
    few = tmp_path / "few"
    write_phantoms(few, num_studies=5, seed=3, valid_fraction=0.4, progress=reported.append)
    assert reported == [1, 2, 3, 4, 5]
    assert num_studies(few) == {"train": 3, "valid": 2}
    for file in few.rglob("*.jpg"):
        inside = file.relative_to(few).parts[1:]
        assert file.read_bytes() == folder.joinpath("train", *inside).read_bytes()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    trees = []
    for place in ("a", "b"):
        root = tmp_path / place / "same"
        write_phantoms(root, num_studies=6, seed=11)
        trees.append({str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()})
    assert trees[0] == trees[1]
    assert {"train.csv", "valid.csv", "truth.csv", "README.md"} < set(trees[0])


def test_both_studies_of_a_patient_go_to_the_same_split(tmp_path: Path) -> None:
    # The sixth study is the fifth patient's second, so that one study in valid becomes two.
    write_phantoms(tmp_path / "x", num_studies=6, valid_fraction=1 / 6)
    assert num_studies(tmp_path / "x") == {"train": 4, "valid": 2}


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="is not empty; choose a new or empty folder"):
        write_phantoms(tmp_path, num_studies=1)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_studies": 0}, "at least 1 study, got num_studies=0"),
        ({"seed": -1}, "seed of at least 0, got -1"),
        ({"valid_fraction": 1.0}, r"valid_fraction in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_the_number_of_workers_changes_no_byte(tmp_path):
    for workers in (1, 2):
        write_phantoms(tmp_path / str(workers) / "phantoms", num_studies=12, seed=3, workers=workers)
    one, two = tmp_path / "1", tmp_path / "2"
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(two) for path in sorted(two.rglob("*")) if path.is_file()]
    assert len(files) > 12
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
