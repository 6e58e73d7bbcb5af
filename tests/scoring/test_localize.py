import csv
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor, cli
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.datasets.reference import ReferenceFileError, read_reference
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.intervals import BootstrapEstimate
from chexpert_hf.evaluation.localization import localize
from chexpert_hf.evaluation.localization.chexlocalize import TASK_OF, TASKS, RunLengths, image_id, write_segmentations
from chexpert_hf.evaluation.localization.ground_truth import (
    Boxes,
    GroundTruthError,
    MaskFolder,
    Segmentations,
    find_ground_truth,
)
from chexpert_hf.evaluation.localization.localization import box_mask, find_peak, iou, saliency_mask
from chexpert_hf.evaluation.localization.localization_report import (
    as_dictionary,
    as_markdown,
    as_text,
    write_localization,
)
from chexpert_hf.evaluation.localization.localize import (
    BASELINES,
    localize_dataset,
    map_before_resizing,
    scored_images,
    untrained_like,
)
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.classifier import CheXpertEnsemble
from chexpert_hf.scoring.saliency import SaliencyMaps

# pycocotools 2.0.11 does not know numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_IMAGES = 12


def name_of(number: int) -> str:
    """Two images of each patient."""
    return f"valid/patient{number // 2 + 1:05d}/study{number % 2 + 1}/view1_frontal.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CheXpert folder of smoothed noise, 70 x 56; its labels say nothing."""
    root = tmp_path_factory.mktemp("data") / "noise"
    rng = np.random.default_rng(0)
    lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(OBSERVATIONS)]
    for number in range(NUM_IMAGES):
        file = root / name_of(number)
        file.parent.mkdir(parents=True)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9), dtype=np.uint8))
        coarse.resize((70, 56), Image.Resampling.BICUBIC).save(file, quality=95)
        lines.append(f"noise/{name_of(number)},Male,50,Frontal,PA," + ",".join("1.0" for _ in OBSERVATIONS))
    (root / "valid.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def dataset(folder):
    return load_dataset(folder, splits=["valid"])["valid"]


@pytest.fixture
def classifier(tiny_folder) -> CheXpertClassifier:
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    classifier.model.config.operating_points |= {"Edema": 0.0, "Cardiomegaly": 1.0}
    return classifier


def random_masks(shape=(56, 70), seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Rectangles of three observations in about half of the images each."""
    rng = np.random.default_rng(seed)
    masks: dict[str, dict[str, np.ndarray]] = {name_of(number): {} for number in range(NUM_IMAGES)}
    for found in masks.values():
        for name in ("Edema", "Cardiomegaly", "Lung Opacity"):
            if rng.random() < 0.5:
                x, y, width, height = rng.integers(5, 40, 4)
                found[name] = box_mask([[x, y, width, height]], (56, 70))
                found[name] = np.asarray(Image.fromarray(found[name]).resize(shape[::-1]))
    return masks


@pytest.fixture
def segmentations(tmp_path) -> Path:
    file = tmp_path / "gt.json"
    write_segmentations(file, by_id(random_masks()))
    return file


def by_id(masks):
    return {
        path.split("/", 1)[1][:-4].replace("/", "_"): {name: RunLengths.encode(mask) for name, mask in found.items()}
        for path, found in masks.items()
        if found
    }


def write_boxes(file: Path, rows) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["Path", "Observation", "x", "y", "width", "height"], *rows])
    return file


# The figures


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_scores_are_those_of_the_maps_that_predict_gives(classifier, dataset, folder, segmentations, threshold):
    result = localize_dataset(classifier, dataset, Segmentations(segmentations), threshold=threshold, replicates=100)
    masks, number = random_masks(), 0
    for path in (name_of(number) for number in range(NUM_IMAGES)):
        prediction = classifier.predict(folder / path, saliency=True)
        for name in [name for name in OBSERVATIONS if name in masks[path]]:
            item, number = result.findings[number], number + 1
            saliency, score = prediction.saliency[name], item.scores["model"]
            assert (item.path, item.observation, item.patient) == (path, name, path.split("/")[1])
            assert item.probability == pytest.approx(prediction.probabilities[name], abs=1e-6)
            mask = saliency_mask(saliency, threshold)
            assert score.iou == pytest.approx(iou(mask, masks[path][name]), abs=2e-3, nan_ok=True)
            assert (score.peak is None) == (saliency.max() == 0)
            if score.peak is not None:
                assert saliency[score.peak] == pytest.approx(saliency.max(), rel=1e-4)
                assert score.hit == masks[path][name][score.peak]
    assert number == len(result.findings) > 12
    assert [item.observation for item in result.observations] == ["Cardiomegaly", "Lung Opacity", "Edema"]


def test_a_finding_where_the_model_points_is_a_hit_and_anywhere_else_a_miss(classifier, dataset, folder, tmp_path):
    at_peak, elsewhere = [], []
    for number in range(NUM_IMAGES):
        saliency = classifier.predict(folder / name_of(number), saliency=True).saliency["Edema"]
        peak = find_peak(saliency)
        if peak is None:
            continue
        y, x = peak
        at_peak.append([f"noise/{name_of(number)}", "Edema", x - 1, y - 1, 3, 3])
        elsewhere.append([f"noise/{name_of(number)}", "Edema", (x + 20) % 60, (y + 20) % 46, 8, 8])
    assert len(at_peak) > 4
    for rows, rate in ((at_peak, 1), (elsewhere, 0)):
        result = localize_dataset(classifier, dataset, Boxes(write_boxes(tmp_path / "b.csv", rows)), replicates=100)
        (edema,) = result.observations
        model = edema.pointers["model"]
        assert (model.hit_rate.value, model.num_images, model.num_empty) == (rate, len(rows), 0)
        assert edema.gains["centre"].value == pytest.approx(rate - edema.pointers["centre"].hit_rate.value)
        assert edema.full_set_miou is None
        assert result.num_images == len(rows)


def test_fixed_places_are_scored_at_their_places(classifier, dataset, tmp_path):
    rows = [
        [name_of(0), "Edema", 33, 26, 4, 4],
        [name_of(2), "Edema", 0, 0, 70, 56],
        [name_of(4), "Edema", 20, 24, 3, 3],
    ]
    result = localize_dataset(classifier, dataset, Boxes(write_boxes(tmp_path / "b.csv", rows)), replicates=100)
    assert result.num_images == 3  # what has no box may be there all the same
    assert [item.scores["centre"].hit for item in result.findings] == [1, 1, 0]
    assert [item.scores["right lung"].hit for item in result.findings] == [0, 1, 1]  # .3 x 70 = 21, .45 x 56 = 25.2
    assert all(item.scores["untrained"].hit == 1 for item in result.findings[1:2])


def test_the_full_set_counts_calls_without_finding_and_takes_what_is_not_called_as_empty(
    classifier, dataset, folder, segmentations
):
    predictions = [classifier.predict(folder / name_of(number), saliency=True) for number in range(NUM_IMAGES)]
    middle = float(np.median([prediction.probabilities["Lung Opacity"] for prediction in predictions]))
    classifier.model.config.operating_points |= {"Lung Opacity": middle}  # half are called; Edema always is
    result = localize_dataset(classifier, dataset, Segmentations(segmentations), replicates=100)
    masks = random_masks()
    for item in result.observations:
        point = {"Lung Opacity": middle, "Edema": 0.0, "Cardiomegaly": 1.0}[item.observation]
        ious = []
        for number, prediction in enumerate(predictions):
            truth = masks[name_of(number)].get(item.observation, np.zeros((56, 70), dtype=bool))
            is_called = prediction.probabilities[item.observation] >= point
            marked = saliency_mask(prediction.saliency[item.observation]) & is_called
            ious.append(iou(marked, truth, true_positives_only=False))
        assert item.full_set_miou.value == pytest.approx(np.nanmean(ious), abs=2e-3)
        has_undefined = np.isnan(ious).any()
        assert has_undefined or item.observation == "Edema"


def test_what_is_written_gives_the_same_figures_by_the_published_procedure(
    classifier, dataset, segmentations, tmp_path
):
    """cheXlocalize's own steps with its own libraries: pickle, bilinear torch, OpenCV, pycocotools."""
    cv2, coco = pytest.importorskip("cv2"), pytest.importorskip("pycocotools.mask")
    maps = tmp_path / "maps"
    result = localize_dataset(classifier, dataset, Segmentations(segmentations), replicates=100, maps_folder=maps)
    truths = json.loads((maps / "gt_segmentations.json").read_text())
    ours = {("_".join(Path(item.path[:-4]).parts[1:]), item.observation): item for item in result.findings}
    files = sorted(maps.glob("*_map.pkl"))
    assert len(files) == NUM_IMAGES * len(TASKS)
    assert len({path for path, _ in ours}) < NUM_IMAGES  # some images have no finding, and files all the same
    for file in files:
        *image, task, _ = file.name.split("_")
        key = "_".join(image), next(name for name, theirs in TASK_OF.items() if theirs == task)
        info, truth = pickle.loads(file.read_bytes()), coco.decode(truths[key[0]][task])
        assert info["gt"] == truth.any() == (key in ours)
        assert info["cxr_dims"] == truth.shape[::-1] == (70, 56)
        if key not in ours or not info["map"].any():
            continue
        size = info["cxr_dims"][::-1]
        resized = functional.interpolate(info["map"], size=size, mode="bilinear", align_corners=False).squeeze()
        scaled = resized - resized.min()
        levels = np.uint8(255 * scaled.div(scaled.max()).numpy())
        mask = cv2.threshold(levels, 0, levels.max(), cv2.THRESH_OTSU)[1]
        score = ours[key].scores["model"]
        assert score.iou == np.logical_and(mask, truth).sum() / np.logical_or(mask, truth).sum()
        peak = np.unravel_index(resized.numpy().argmax(), resized.shape)
        if (resized >= resized.max() * (1 - 1e-5)).sum() == 1:  # where they differ on purpose, see find_peak
            assert (score.peak, score.hit) == (peak, truth[peak])


def test_maps_and_larger_masks_are_compared_at_the_masks_size(classifier, dataset, tmp_path):
    # As with CheXpert-v1.0-small and cheXlocalize's masks of the full radiographs.
    file = tmp_path / "large.json"
    write_segmentations(file, by_id(random_masks((560, 701))))
    large = localize_dataset(classifier, dataset, Segmentations(file), replicates=100, maps_folder=tmp_path / "maps")
    assert {item.shape for item in large.findings} == {(560, 701)}
    write_segmentations(file, by_id(random_masks()))
    small = localize_dataset(classifier, dataset, Segmentations(file), replicates=100)
    for one, other in zip(large.findings, small.findings, strict=True):
        assert one.scores["model"].iou == pytest.approx(other.scores["model"].iou, abs=0.05, nan_ok=True)
    with_truth = next((tmp_path / "maps").glob("patient*_map.pkl"))
    assert pickle.loads(with_truth.read_bytes())["cxr_dims"] == (701, 560)


def test_the_untrained_network_has_the_statistics_of_the_images(classifier, dataset, segmentations, monkeypatch):
    used = []
    score = localize.scored_images
    monkeypatch.setattr(localize, "scored_images", lambda one, *rest: used.append(one.model) or score(one, *rest))
    localize_dataset(classifier, dataset, Segmentations(segmentations), replicates=2)
    features = next(model for model in used if model is not classifier.model).features
    pixel_values = classifier.processor(dataset["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        mean = features.conv0(pixel_values).mean(dim=(0, 2, 3))
    torch.testing.assert_close(features.norm0.running_mean, mean, rtol=1e-3, atol=1e-4)


def test_the_untrained_network_is_seeded_and_leaves_the_model_and_the_generator_alone(classifier, folder):
    files = [folder / name_of(0)]
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    state = torch.get_rng_state()
    one, same, other = (untrained_like(classifier, files, seed).model.state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in classifier.model.state_dict().items())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(one["classifier.weight"], before["classifier.weight"])


def test_maps_of_an_ensemble_are_those_that_predict_gives(classifier, dataset, folder):
    finer = CheXpertImageProcessor(size={"height": 128, "width": 128})
    ensemble = CheXpertEnsemble([classifier, CheXpertClassifier(classifier.model, finer)])
    for row, (_, scored) in zip([3, 0], scored_images(ensemble, dataset, [3, 0]), strict=True):
        prediction = ensemble.predict(folder / name_of(row), saliency=True)
        assert scored.maps.size == (70, 56)
        assert scored.probabilities == pytest.approx(prediction.probabilities, abs=1e-6)
        for name in ("Edema", "Fracture"):
            assert np.allclose(scored.maps.at_size((70, 56))[name], prediction.saliency[name], atol=1e-5)
            assert map_before_resizing(scored.maps, name).size < 56 * 70 / 8


def test_a_coarse_map_of_a_part_of_the_image_lies_on_that_part():
    maps = SaliencyMaps(torch.ones(1, 2, 2), ["Edema"], (80, 40), (20.0, 0.0, 60.0, 40.0))
    coarse = map_before_resizing(maps, "Edema")
    assert coarse[:, 80:240].min() == pytest.approx(1)
    assert coarse[:, :79].max() == coarse[:, 241:].max() == 0


def test_no_more_images_than_two_batches_are_held_at_once(classifier, dataset, segmentations, monkeypatch):
    reads, done, held = [], [], []
    read = CheXpertClassifier.read
    monkeypatch.setattr(CheXpertClassifier, "read", lambda self, file: reads.append(file) or read(self, file))
    predict = CheXpertClassifier.predict_prepared
    monkeypatch.setattr(
        CheXpertClassifier,
        "predict_prepared",
        lambda self, images, saliency: predict(self, images, saliency=True, batch_size=4),
    )

    def progress(count: int) -> None:
        done.append(count)
        # Each image is read for the model and for the untrained network, and before that for the latter's statistics.
        held.append((len(reads) - NUM_IMAGES) / 2 - len(done))

    localize_dataset(classifier, dataset, Segmentations(segmentations), replicates=100, progress=progress)
    assert sum(done) == NUM_IMAGES
    assert max(held) <= 4


# Ground truth


def test_masks_of_phantoms_are_found_and_belong_to_their_images(tmp_path, classifier):
    root = tmp_path / "phantoms"
    write_phantoms(root, num_studies=4, seed=5, valid_fraction=0.8)
    truth = find_ground_truth(root, OBSERVATIONS)
    assert isinstance(truth, MaskFolder)
    dataset = load_dataset(root, splits=["valid"], frontal_only=True)["valid"]
    for path, labels in zip(dataset["path"][:], dataset["labels"][:], strict=True):
        positive = {
            name for name, label in zip(OBSERVATIONS, labels, strict=True) if label == 1 and name != "No Finding"
        }
        assert set(truth.findings(path)) == positive
        shape = np.asarray(Image.open(root / path)).shape
        for name in positive:
            file = root / "masks" / path.replace(".jpg", "") / f"{name}.png"
            assert np.array_equal(truth.mask(path, name, shape), np.asarray(Image.open(file)))
    result = localize_dataset(classifier, dataset, truth, replicates=100)
    assert len(result.findings) == sum(len(truth.findings(path)) for path in dataset["path"][:])
    Image.fromarray(np.zeros(shape, dtype=bool)).save(file)
    with pytest.raises(GroundTruthError, match="marks no pixel"):
        localize_dataset(classifier, dataset, truth)
    file.write_bytes(b"no image")
    with pytest.raises(GroundTruthError, match="cannot be read as a mask"):
        localize_dataset(classifier, dataset, truth)


def test_boxes_go_by_chexperts_or_nihs_names_and_several_are_one(tmp_path):
    path = "train/patient00001/study1/view1_frontal.jpg"
    rows = [
        [f"NIH-mini/{path}", "Effusion", 0, 0, 2, 2],
        [path, "Pleural Effusion", 4, 4, 1, 1],
        [path, "Mass", 1, 1, 1, 1],
        [path, "Infiltrate", 1, 1, 2, 1],
    ]
    boxes = Boxes(write_boxes(tmp_path / "boxes.csv", rows))
    assert boxes.findings(path) == ("Lung Opacity", "Lung Lesion", "Pleural Effusion")
    assert boxes.mask(path, "Pleural Effusion", (5, 6)).sum() == 5
    assert boxes.findings("train/patient00002/study1/view1_frontal.jpg") == ()
    assert not boxes.is_complete


def test_boxes_of_a_reference_stand_for_the_observations_it_is_mapped_to(tmp_path):
    path = "train/patient00001/study1/view1_frontal.jpg"
    file = tmp_path / "rsna.csv"
    file.write_text(
        f"Path,Class,Target,x,y,width,height\n{path},Lung Opacity,1,0,0,2,2\n{path},Lung Opacity,1,4,4,1,1\n"
        f"{path.replace('00001', '00002')},Normal,0,,,,\n"
    )
    mapping = ["Target=Lung Opacity,Target=Pneumonia"]
    boxes = Boxes(read_reference(file, mapping=mapping, against=["Class=Normal"], name="RSNA radiologists"))
    assert boxes.source == "boxes in rsna.csv (RSNA radiologists)"
    assert boxes.images() == [path]
    assert boxes.findings(path) == ("Lung Opacity", "Pneumonia")
    assert boxes.mask(path, "Pneumonia", (5, 6)).sum() == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["p", "Hernia", 1, 1, 1, 1], "row 2: 'Hernia' is no observation of the model, CheXpert or NIH"),
        (["p", "Edema", 1, 1, 0, 1], "row 2: '1, 1, 0, 1' is no box"),
        (["p", "Edema", 1, "nan", 1, 1], "row 2: '1, nan, 1, 1' is no box"),
        (["p", "Edema", 1, "left", 1, 1], "row 2: '1, left, 1, 1' is no box"),
    ],
)
def test_a_row_that_is_no_box_is_refused(tmp_path, row, message):
    with pytest.raises(ReferenceFileError, match=message):
        Boxes(write_boxes(tmp_path / "boxes.csv", [row]))


def test_boxes_that_went_through_a_spreadsheet_on_windows_are_the_same(tmp_path):
    file = write_boxes(tmp_path / "boxes.csv", [["valid/patient1/study1/view1_frontal.jpg", "Edema", 1.5, 2, 3, 4]])
    expected = Boxes(file).mask("valid/patient1/study1/view1_frontal.jpg", "Edema", (8, 8))
    text = file.read_text().replace(",", ";").replace("1.5", "1,5").replace("/", "\\")
    file.write_text(text, encoding="utf-16")
    boxes = Boxes(file)
    assert boxes.images() == ["valid/patient1/study1/view1_frontal.jpg"]
    np.testing.assert_array_equal(boxes.mask(boxes.images()[0], "Edema", (8, 8)), expected)


def test_a_file_that_is_not_of_boxes_is_refused(tmp_path):
    file = tmp_path / "boxes.csv"
    file.write_text("Path,Observation,x\np,Edema,1\n")
    with pytest.raises(ReferenceFileError, match="missing: y, width, height"):
        Boxes(file)
    with pytest.raises(ReferenceFileError, match="got no row"):
        Boxes(write_boxes(file, []))
    file.write_text("Path,Edema\np,1\n")
    with pytest.raises(GroundTruthError, match=r"boxes\.csv holds no box"):
        Boxes(file)
    with pytest.raises(GroundTruthError, match=r"outside of p, which is 6 x 5"):
        Boxes(write_boxes(file, [["p", "Edema", 100, 100, 5, 5]])).mask("p", "Edema", (5, 6))


def test_run_lengths_of_siim_are_scored_like_the_boxes_that_they_fill(tmp_path, classifier):
    folder = tmp_path / "siim"
    rng = np.random.default_rng(0)
    rectangles = {0: [(100, 200, 300, 400), (600, 50, 80, 90)], 1: [(700, 300, 200, 500)], 2: []}
    lines, rows = ["ImageId, EncodedPixels"], []
    for number, boxes in rectangles.items():
        path = f"dicom-images-train/1.2/1.3.{number}/1.2.276.{number}.png"
        (folder / path).parent.mkdir(parents=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
        coarse.resize((1024, 1024), Image.Resampling.BICUBIC).save(folder / path)
        for x, y, width, height in boxes:
            runs = [1024 * x + y, height] + [1024 - height, height] * (width - 1)
            lines.append(f"1.2.276.{number}, {' '.join(map(str, runs))}")
            rows.append([path, "Pneumothorax", x, y, width, height])
    (folder / "train-rle.csv").write_text("\n".join([*lines, "1.2.276.2, -1"]) + "\n")
    settings = {"observations": classifier.observations, "splits": ["train"], "valid_fraction": 0}
    dataset = load_dataset(folder, **settings)["train"]
    truth = find_ground_truth(folder, classifier.observations)
    assert truth.source == "masks in the files of siim"
    result = localize_dataset(classifier, dataset, truth, replicates=100)
    of_boxes = localize_dataset(classifier, dataset, Boxes(write_boxes(tmp_path / "b.csv", rows)), replicates=100)
    assert len(result.findings) == 2
    assert result.findings == of_boxes.findings
    assert (result.num_images, of_boxes.num_images) == (3, 2)  # "-1" says that there is nothing


def test_maps_of_images_that_lie_in_one_folder_are_written_under_their_names(tmp_path, classifier):
    folder = tmp_path / "films"
    folder.mkdir()
    lines = ["image,Edema"]
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (70, 56), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        lines.append(f"{number}.png,1")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset(folder, observations=["Edema"], splits=["train"], valid_fraction=0)["train"]
    boxes = Boxes(write_boxes(tmp_path / "b.csv", [["0.png", "Edema", 1, 1, 20, 20]]))
    localize_dataset(classifier, dataset, boxes, replicates=100, maps_folder=tmp_path / "maps")
    assert (tmp_path / "maps" / "0_Edema_map.pkl").is_file()


def test_maps_of_an_earlier_run_are_not_left_beside_those_of_a_new_one(dataset, classifier, segmentations, tmp_path):
    maps, truth = tmp_path / "maps", Segmentations(segmentations)
    localize_dataset(classifier, dataset, truth, replicates=100, maps_folder=maps)
    (maps / "notes.txt").write_text("mine")
    part = dataset.select([next(row for row, path in enumerate(dataset["path"]) if truth.findings(path))])
    localize_dataset(classifier, part, truth, replicates=100, maps_folder=maps)
    written = {"_".join(file.name.split("_")[:-2]) for file in maps.glob("*_map.pkl")}
    assert written == json.loads((maps / "gt_segmentations.json").read_text()).keys() == {image_id(part["path"][0])}
    assert (maps / "notes.txt").is_file()


def test_images_that_chexlocalizes_files_could_not_tell_apart_are_refused(tmp_path, classifier):
    files = [f"hospital{name}/p1/s1/film.png" for name in "AB"]
    for number, file in enumerate(files):
        (tmp_path / "films" / file).parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (70, 56), dtype=np.uint8)).save(
            tmp_path / "films" / file
        )
    (tmp_path / "films" / "valid.csv").write_text("".join(["image,Edema\n", *(f"{file},1\n" for file in files)]))
    dataset = load_dataset(tmp_path / "films", observations=["Edema"], splits=["valid"])["valid"]
    boxes = Boxes(write_boxes(tmp_path / "b.csv", [[file, "Edema", 1, 1, 20, 20] for file in files]))
    assert len(localize_dataset(classifier, dataset, boxes, replicates=100).findings) == 2
    with pytest.raises(
        InputError, match=r"hospitalA/p1/s1/film.png and hospitalB/p1/s1/film.png are both 'p1_s1_film'"
    ):
        localize_dataset(classifier, dataset, boxes, replicates=100, maps_folder=tmp_path / "maps")
    write_segmentations(
        tmp_path / "gt.json", {"p1_s1_film": {"Edema": RunLengths.encode(np.ones((70, 56), dtype=bool))}}
    )
    with pytest.raises(InputError, match="are both 'p1_s1_film'"):
        localize_dataset(classifier, dataset, Segmentations(tmp_path / "gt.json"), replicates=100)


def test_masks_of_another_image_are_refused(classifier, dataset, tmp_path):
    file = tmp_path / "gt.json"
    for shape in ((70, 56), (28, 35), (560, 720)):
        write_segmentations(file, by_id(random_masks(shape)))
        with pytest.raises(GroundTruthError, match=rf"the mask is {shape[1]} x {shape[0]}, the image 70 x 56"):
            localize_dataset(classifier, dataset, Segmentations(file))


def test_a_folder_without_ground_truth_and_a_ground_truth_of_other_images_are_refused(
    folder, classifier, dataset, tmp_path
):
    with pytest.raises(GroundTruthError, match=r"neither masks/ nor boxes\.csv"):
        find_ground_truth(folder, OBSERVATIONS)
    with pytest.raises(GroundTruthError, match="is not a file; expected a CSV file of boxes"):
        find_ground_truth(folder, OBSERVATIONS, tmp_path / "none.csv")
    boxes = write_boxes(tmp_path / "b.csv", [["train/patient00001/study1/view1_frontal.jpg", "Edema", 1, 1, 1, 1]])
    assert isinstance(find_ground_truth(folder, OBSERVATIONS, boxes), Boxes)
    with pytest.raises(InputError, match=r"None of the 12 images of this split .*boxes in b\.csv"):
        localize_dataset(classifier, dataset, Boxes(boxes))


def test_a_file_of_boxes_may_name_labels_of_the_models_own_and_images_by_the_end_of_their_paths(folder, tmp_path):
    boxes = write_boxes(tmp_path / "b.csv", [["1.png", "Silicosis", 1, 1, 1, 1], ["2.png", "Effusion", 1, 1, 1, 1]])
    truth = find_ground_truth(folder, ["Silicosis", "Pleural effusion"], boxes, images=["a/1.png", "a/2.png"])
    assert {path: truth.findings(path) for path in ("a/1.png", "a/2.png")} == {
        "a/1.png": ("Silicosis",),
        "a/2.png": ("Pleural effusion",),
    }


def test_the_boxes_of_real_radiographs_lie_in_them(real_data):
    boxes = find_ground_truth(real_data / "NIH-mini", OBSERVATIONS)
    assert len(boxes.images()) == 29
    for path in boxes.images():
        for name in boxes.findings(path):
            assert 0 < boxes.mask(path, name, (390, 390)).sum() < 390 * 390 / 2


# Results


@pytest.fixture
def result(classifier, dataset, segmentations):
    return localize_dataset(classifier, dataset, Segmentations(segmentations), replicates=100)


def test_the_files_hold_every_finding_and_every_figure(result, tmp_path):
    write_localization(tmp_path, result, "noise, valid", ["Mind this."])
    rows = list(csv.DictReader((tmp_path / "localization.csv").open()))
    assert len(rows) == len(result.findings)
    for row, item in zip(rows, result.findings, strict=True):
        assert (row["path"], row["observation"]) == (item.path, item.observation)
        for pointer in ("model", *BASELINES):
            score, prefix = item.scores[pointer], pointer.replace(" ", "_")
            assert int(row[f"{prefix}_hit"]) == score.hit
            assert (row[f"{prefix}_iou"] == "") == np.isnan(score.iou)
            assert (row[f"{prefix}_y"], row[f"{prefix}_x"]) == tuple(map(str, score.peak or ("", "")))
    figures = json.loads((tmp_path / "localization.json").read_text())
    assert figures["warnings"] == ["Mind this."]
    for item in result.observations:
        entry = figures["observations"][item.observation]
        hits = [int(row["model_hit"]) for row in rows if row["observation"] == item.observation]
        assert entry["pointers"]["model"]["hit_rate"]["value"] == pytest.approx(np.mean(hits))
        assert entry["num_images"] == len(hits)
        assert entry["hit_rate_minus"].keys() == set(BASELINES)
    assert "Mind this." in (tmp_path / "localization.md").read_text()


def test_tables_name_every_observation_and_figure(result):
    edema = next(item for item in result.observations if item.observation == "Edema")
    miou = f"{edema.pointers['model'].miou.value:.3f}".lstrip("0")
    for text in (as_text(result), as_markdown(result, "noise")):
        lines = [line for line in text.splitlines() if line.strip("| ").startswith("Edema")]
        assert str(edema.pointers["model"].num_images) in lines[0]
        assert miou in lines[1]
        centre = f"{edema.pointers['centre'].miou.value:.3f}".lstrip("0")
        assert lines[1].index(miou) < lines[1].index(centre)
        assert "segmentations in gt.json" in text
    assert json.dumps(as_dictionary(result), allow_nan=False)


def test_means_are_over_the_observations_where_every_pointer_has_a_figure(result):
    first, second, third = result.observations
    undefined = replace(first.pointers["model"], miou=BootstrapEstimate(np.nan, np.nan, np.nan, 0))
    first = replace(first, pointers={**first.pointers, "model": undefined})
    result = replace(result, observations=[first, second, third])
    json.dumps(as_dictionary(result), allow_nan=False)
    assert as_dictionary(result)["observations"][first.observation]["pointers"]["model"]["miou"]["value"] is None
    table = as_text(result).partition("mIoU")[2]
    means = next(line for line in table.splitlines() if line.startswith("mean")).split()[1:]
    expected = [np.mean([item.pointers[name].miou.value for item in (second, third)]) for name in ("model", *BASELINES)]
    assert [float(mean) for mean in means] == pytest.approx(expected, abs=6e-4)


# The command


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["chexpert-hf", "localize", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_command_prints_the_table_and_writes_the_files(monkeypatch, capsys, folder, tiny_folder, segmentations):
    output = tiny_folder.parent / "out"
    options = ["--model", tiny_folder, "--output", output, "--annotations", segmentations, "--replicates", 100]
    code, out, err = run(monkeypatch, capsys, folder, *options, "--write-maps")
    assert code == 0, err
    assert "Hit rate" in out
    assert "Lung Opacity" in out
    assert {file.name for file in output.iterdir()} == {
        "localization.csv",
        "localization.json",
        "localization.md",
        "maps",
    }
    code, out, _ = run(monkeypatch, capsys, folder, *options, "--threshold", "0.5", "--json")
    assert (code, json.loads(out)["threshold"]) == (0, 0.5)


def test_the_command_says_which_boxes_are_in_other_splits(monkeypatch, capsys, folder, tiny_folder, tmp_path):
    other = "train/patient00050/study1/view1_frontal.jpg"
    boxes = write_boxes(tmp_path / "b.csv", [[name_of(0), "Edema", 1, 1, 9, 9], [other, "Edema", 1, 1, 9, 9]])
    code, _, err = run(monkeypatch, capsys, folder, "-m", tiny_folder, "-o", tmp_path / "out", "--annotations", boxes)
    assert code == 0
    assert f"1 more images with boxes are not in this split, such as {other}" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1.5"], "--threshold is '1.5', expected otsu or a number between 0 and 1"),
        (["--threshold", "half"], "--threshold is 'half', expected otsu"),
        ([], "has neither masks/ nor boxes.csv"),
        (["--annotations", "none.json"], "none.json is not a file"),
        (["--annotations", "bad.json"], "bad.json: expected an object"),
        (["--output", "bad.json"], "cannot be a folder for the results"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, folder, tiny_folder, tmp_path, options, message):
    (tmp_path / "bad.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    arguments = [folder, "--model", tiny_folder, *([] if "--output" in options else ["--output", "out"]), *options]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
