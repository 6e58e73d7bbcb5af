"""Against torchxrayvision's own model and preparation of images, where that is installed."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from chexpert_hf.formats import torchxrayvision_models
from chexpert_hf.formats.exports import FormatError, export_format, write_torchxrayvision
from chexpert_hf.formats.imports import import_model, read_source
from chexpert_hf.formats.torchxrayvision_models import MODELS, PREFIX, TARGETS, processor, published_model
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.card import card_problems
from chexpert_hf.scoring.classifier import CheXpertClassifier

from .foreign_networks import phantom_image, with_own_statistics

xrv = pytest.importorskip("torchxrayvision")
skimage_io = pytest.importorskip("skimage.io")

FURTHER = ("Infiltration", "Emphysema", "Fibrosis", "Pleural_Thickening", "Nodule", "Mass", "Hernia")
"""Outputs that CheXpert has no name for."""


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory) -> list[Path]:
    """Files that are not square: a phantom, and one of its size in CheXpert's originals, which decoders scale down."""
    folder = tmp_path_factory.mktemp("radiographs")
    phantom = phantom_image()
    phantom.resize((300, 390)).save(folder / "phantom.png")
    phantom.resize((1400, 1100)).save(folder / "large.jpg", quality=95)
    return [folder / "phantom.png", folder / "large.jpg"]


def prepared_by_them(path: Path) -> torch.Tensor:
    """By the steps of their README, `(1, 1, 224, 224)`."""
    image = xrv.datasets.normalize(skimage_io.imread(path), 255)
    image = image.mean(2)[None] if image.ndim == 3 else image[None]
    for step in (xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)):
        image = step(image)
    return torch.from_numpy(image)[None]


@pytest.fixture(scope="module")
def source(radiographs):
    torch.manual_seed(0)
    network = xrv.models.DenseNet()
    # Four images, so that statistics are of radiographs as the network sees them.
    seen = torch.cat([prepared_by_them(path) for path in radiographs for _ in range(2)])
    with_own_statistics(network, seen + 30 * torch.randn(seen.shape))
    # Scores on both sides of the operating points, as of a trained network.
    points = torch.tensor([MODELS["all"].thresholds[name] for name in TARGETS])
    above = torch.tensor([0.4, -0.4]).repeat(9)
    with torch.no_grad():
        network.classifier.bias += points.logit() + above - network(prepared_by_them(radiographs[0]))[0]
    return network


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    place = tmp_path_factory.mktemp("torchxrayvision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(source, place / "published.pt", _use_new_zipfile_serialization=False)  # as the published files are
    import_model("torchxrayvision:densenet121-res224-all", place / "all", file=place / "published.pt")
    return place / "all"


@pytest.mark.parametrize("name", list(MODELS))
def test_the_table_is_torchxrayvisions(name):
    theirs, ours = xrv.models.model_urls[PREFIX + name], published_model(PREFIX + name)
    assert ours is published_model(name)
    assert ours.url == theirs["weights_url"]
    assert [target if target in ours.thresholds else "" for target in TARGETS] == theirs["labels"]
    points = [ours.thresholds.get(target, np.nan) for target in TARGETS]
    np.testing.assert_array_equal(points, theirs["op_threshs"])
    assert theirs["input_resolution"] == torchxrayvision_models.SIDE


def check_parity(folder: Path, source: torch.nn.Module, paths: list[Path]) -> None:
    classifier = CheXpertClassifier.from_pretrained(folder)
    rows = [TARGETS.index({"Pleural Effusion": "Effusion"}.get(name, name)) for name in classifier.observations]
    for path in paths:
        pixel_values = prepared_by_them(path)
        with torch.no_grad():
            expected = source(pixel_values)[0, rows]
        gray = classifier.prepare(classifier.read(path)).gray[0][None]
        ours = classifier.processor.pixel_values_of(gray)
        torch.testing.assert_close(ours, pixel_values, atol=2e-3, rtol=0)  # of 1024
        logits, _ = classifier.runtime(ours, saliency=False)
        torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=0)
        predicted = classifier.predict(path).probabilities
        assert list(predicted.values()) == pytest.approx(expected.sigmoid().tolist(), abs=1e-5)


def test_logits_are_theirs_on_files_of_any_shape(folder, source, radiographs):
    check_parity(folder, source, radiographs)


def test_logits_are_theirs_on_real_radiographs(folder, source, real_data):
    paths = [
        path
        for path in [*sorted((real_data / "NIH-originals").glob("*.png"))[:6], *sorted(real_data.rglob("*.jpg"))[:6]]
        if Image.open(path).mode == "L"
    ]
    assert len(paths) >= 6
    check_parity(folder, source, paths)


def test_observations_and_operating_points_are_theirs_by_our_names(folder):
    config = CheXpertClassifier.from_pretrained(folder).model.config
    theirs = xrv.models.model_urls["densenet121-res224-all"]
    expected = {
        {"Effusion": "Pleural Effusion"}.get(name, name): point
        for name, point in zip(theirs["labels"], theirs["op_threshs"], strict=True)
    }
    assert len(expected) == 18
    assert config.operating_points == expected
    assert tuple(config.observations) == tuple(expected)
    assert "They come from torchxrayvision" in (folder / "README.md").read_text()


def test_a_score_is_positive_where_theirs_is_above_a_half(folder, source, radiographs):
    theirs = xrv.models.DenseNet(op_threshs=torch.tensor(xrv.models.model_urls["all"]["op_threshs"])).eval()
    theirs.load_state_dict({**source.state_dict(), "op_threshs": theirs.op_threshs})
    prediction = CheXpertClassifier.from_pretrained(folder).predict(radiographs[0])
    with torch.no_grad():
        bent = dict(zip(TARGETS, theirs(prepared_by_them(radiographs[0]))[0].tolist(), strict=True))
    named = {"Pleural Effusion": "Effusion"}
    positives = {name: bent[named.get(name, name)] >= 0.5 for name in prediction.positives}
    assert prediction.positives == positives
    assert set(positives.values()) == {True, False}


@pytest.mark.parametrize("kind", ["state_dict", "parallel", "module", "safetensors"])
def test_operating_points_are_those_in_the_file(source, radiographs, tmp_path, kind):
    torch.manual_seed(1)
    own = xrv.models.DenseNet(op_threshs=torch.rand(18) * 0.5).eval()
    own.load_state_dict({**source.state_dict(), "op_threshs": own.op_threshs})
    file = tmp_path / ("own.safetensors" if kind == "safetensors" else "own.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "safetensors":
            save_file(own.state_dict(), file)
        else:
            states = {"state_dict": own.state_dict(), "parallel": torch.nn.DataParallel(own).state_dict()}
            torch.save(states.get(kind, own), file)
    import_model("torchxrayvision:all", tmp_path / "all", file=file)
    prediction = (classifier := CheXpertClassifier.from_pretrained(tmp_path / "all")).predict(radiographs[0])
    with torch.no_grad():
        bent = dict(zip(TARGETS, own(prepared_by_them(radiographs[0]))[0].tolist(), strict=True))
    targets = {name: {"Pleural Effusion": "Effusion"}.get(name, name) for name in classifier.observations}
    assert classifier.operating_points == {
        name: own.op_threshs[TARGETS.index(target)].item() for name, target in targets.items()
    }
    assert prediction.positives == {name: bent[target] >= 0.5 for name, target in targets.items()}
    card = (tmp_path / "all" / "README.md").read_text(encoding="utf-8")
    assert "They come from the file of the weights" in card
    assert card_problems(card) == []


def test_an_operating_point_that_the_file_lacks_is_one_half_and_others_are_checked(source, tmp_path):
    points = torch.full((18,), 0.25)
    points[TARGETS.index("Edema")] = torch.nan
    file = tmp_path / "weights.pt"
    torch.save({**source.state_dict(), "op_threshs": points}, file)
    config = read_source("torchxrayvision:all", file=file).config
    assert config.operating_points["Edema"] == 0.5
    assert config.operating_points["Fracture"] == 0.25
    assert config.operating_points_source["left_out"] == {"Edema": "op_threshs in the file is NaN"}
    too_few = torch.full((5,), 0.25)
    for wrong, expected in ((too_few, r"is \(5,\), expected \(18,\)"), (points - 1, r"Atelectasis: -0.75")):
        torch.save({**source.state_dict(), "op_threshs": wrong}, file)
        with pytest.raises(WeightsError, match=expected):
            read_source("torchxrayvision:all", file=file)


def test_outputs_that_were_not_trained_are_dropped_and_others_keep_their_names(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "nih.pt")
    foreign = read_source("torchxrayvision:nih", file=tmp_path / "nih.pt")
    assert foreign.config.observations == (
        "Atelectasis",
        "Consolidation",
        "Infiltration",
        "Pneumothorax",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural Effusion",
        "Pneumonia",
        "Pleural_Thickening",
        "Cardiomegaly",
        "Nodule",
        "Mass",
        "Hernia",
    )
    assert set(FURTHER) <= set(foreign.config.observations)


def test_the_way_back_is_exact_to_the_last_bit_by_the_lines_of_the_exported_readme(
    folder, source, tmp_path, radiographs
):
    output = tmp_path / "back"
    assert export_format(str(folder), "torchxrayvision", output) == ()
    lines = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)[1]
    space: dict[str, object] = {}
    exec(lines.replace('"model.pt"', repr(str(output / "model.pt"))), space)
    model, config = space["model"], CheXpertClassifier.from_pretrained(folder).model.config
    assert model.targets == [{"Pleural Effusion": "Effusion"}.get(name, name) for name in config.observations]
    rows = [TARGETS.index(name) for name in model.targets]
    original = source.state_dict()
    for name, tensor in model.state_dict().items():
        if name != "op_threshs":
            assert torch.equal(tensor, original[name][rows] if name.startswith("classifier") else original[name]), name
    published = torch.tensor(xrv.models.model_urls["all"]["op_threshs"])
    assert torch.equal(model.op_threshs, published[rows])
    model.op_threshs, model.apply_sigmoid = None, True
    ours = CheXpertClassifier.from_pretrained(folder).predict(radiographs[0]).probabilities
    with torch.no_grad():
        assert model(prepared_by_them(radiographs[0]))[0].tolist() == pytest.approx(list(ours.values()), abs=1e-5)


def test_what_torchxrayvision_cannot_feed_is_refused(folder, tmp_path):
    model, other = CheXpertClassifier.from_pretrained(folder).model, processor()
    other.image_mean = (0.4,)
    with pytest.raises(FormatError, match=r"normalised otherwise \(image_mean is \[0.4\]\)"):
        write_torchxrayvision(tmp_path, model, other)


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ({"do_square_crop": False}, ["leave out XRayCenterCrop"]),
        ({"resize_like": None}, ["XRayResizer resizes in another way"]),
        ({"do_square_crop": False, "resize_like": None}, ["leave out XRayCenterCrop", "resizes in another way"]),
        (
            {
                "do_square_crop": False,
                "resize_like": None,
                "do_center_crop": True,
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
            },
            ["takes the middle 224 x 224 pixels after resizing: do so instead", "resizes in another way"],
        ),
    ],
)
def test_remarks_name_what_differs_from_their_preparation_and_nothing_else(folder, tmp_path, changes, remarks):
    model, other = CheXpertClassifier.from_pretrained(folder).model, processor()
    for name, value in changes.items():
        setattr(other, name, value)
    found = write_torchxrayvision(tmp_path, model, other)
    assert len(found) == len(remarks)
    assert all(expected in line for expected, line in zip(remarks, found, strict=True))


def test_the_file_is_looked_for_in_their_cache_and_downloaded_from_their_address(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    asked = []

    def download(url, path):
        asked.append(url)
        torch.save(source.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        foreign = read_source("torchxrayvision:densenet121-res224-rsna")
        assert foreign.config.observations == ("Pneumonia", "Lung Opacity")
    assert asked == [xrv.models.model_urls["rsna"]["weights_url"]]
    name = asked[0].rpartition("/")[2]
    assert (tmp_path / ".torchxrayvision" / "models_data" / name).is_file()

    def unreachable(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        WeightsError, match=r"could not be downloaded \(no route to host\); put that file at .*pc-dense"
    ):
        read_source("torchxrayvision:pc")


def test_other_names_and_other_heads_are_refused(source, tmp_path):
    with pytest.raises(WeightsError, match=r"has no model 'resnet50-res512-all' .*densenet121-res224-rsna"):
        import_model("torchxrayvision:resnet50-res512-all", tmp_path / "out")
    torch.save({**source.state_dict(), "classifier.weight": torch.zeros(5, 1024)}, tmp_path / "five.pt")
    with pytest.raises(WeightsError, match="has 5 outputs, expected 18, for the names 'Atelectasis'"):
        import_model("torchxrayvision:all", tmp_path / "out", file=tmp_path / "five.pt")
    assert not (tmp_path / "out").exists()
