"""The mirror for timm, and back; what is not a plain DenseNet121 is refused."""

import json
import shutil
import sys

import pytest
import torch

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor, cli
from chexpert_hf.formats.exports import FormatError, export_format, refuse_model, write_timm
from chexpert_hf.formats.imports import read_source
from chexpert_hf.formats.torchxrayvision_models import processor as torchxrayvision_processor

from ..conftest import TINY
from .foreign_networks import densenet, phantom_image

CHANNELS_1 = {"num_channels": 1, "id2label": {0: "Edema", 1: "Fracture"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ours") / "ours"
    torch.save(densenet(3).state_dict(), place.parent / "model.pth")
    foreign = read_source(f"timm:{place.parent / 'model.pth'}", labels=["Edema", "Fracture", "Pneumonia"])
    foreign.build().save_pretrained(place)
    foreign.processor.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def mirror(folder):
    assert export_format(str(folder), "timm", folder.parent / "mirror") == ()
    return folder.parent / "mirror"


def test_the_mirror_comes_back_bit_by_bit(folder, mirror):
    ours = CheXpertForImageClassification.from_pretrained(folder)
    back = read_source(f"timm:{mirror}")
    returned = back.build().state_dict()
    assert returned.keys() == ours.state_dict().keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in ours.state_dict().items())
    assert back.config.observations == ours.config.observations
    image = phantom_image()
    processors = (back.processor, CheXpertImageProcessor.from_pretrained(folder))
    theirs, ours_values = (processor(image, return_tensors="pt")["pixel_values"] for processor in processors)
    assert torch.equal(theirs, ours_values)


def test_the_mirror_scores_as_ours_in_plain_transformers(folder, mirror):
    pytest.importorskip("timm")
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(mirror)
    assert type(model).__name__ == "TimmWrapperForImageClassification"
    ours = CheXpertForImageClassification.from_pretrained(folder)
    prepare, prepare_there = CheXpertImageProcessor.from_pretrained(folder), AutoImageProcessor.from_pretrained(mirror)
    classify = pipeline("image-classification", str(mirror))
    small, large = phantom_image().resize((224, 224)), phantom_image()
    # Pillow and torchvision round a resized pixel now and then to the next gray level; unresized ones are equal.
    for image, levels, tolerance in ((small, 0, 1e-6), (large, 1, 1e-3)):
        pixel_values = prepare(image, return_tensors="pt")["pixel_values"]
        there = prepare_there(image.convert("RGB"))["pixel_values"]
        torch.testing.assert_close(there, pixel_values, atol=levels / 255 / 0.224 + 1e-5, rtol=0)
        with torch.no_grad():
            expected = ours(pixel_values).logits
            torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=0)
        scores = {score["label"]: score["score"] for score in classify(image, top_k=3)}
        named = dict(zip(ours.config.observations, expected.sigmoid()[0].tolist(), strict=True))
        assert scores == pytest.approx(named, abs=tolerance)


def changed(folder, place, **values):
    """A copy of a model folder with other values in its image processor."""
    shutil.copytree(folder, place)
    CheXpertImageProcessor.from_pretrained(folder, **values).save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("target", ["timm", "torchxrayvision"])
def test_a_model_of_normalised_gray_levels_is_refused_as_its_scores_would_change(folder, tmp_path, target):
    source = changed(folder, tmp_path / "ours", gray_range={"low": 0.5, "high": 99.5, "median": 0.5})
    with pytest.raises(FormatError, match=f"^{target} cannot express this model: it would omit gray_range"):
        export_format(source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [{"do_normalize": False}, {"rescale_factor": 1 / 127}])
def test_a_mirror_whose_scores_differ_is_refused(folder, tmp_path, values):
    source = changed(folder, tmp_path / "ours", **values)
    with pytest.raises(FormatError, match=r"probabilities differ by up to 0\.\d+ on synthetic radiographs"):
        export_format(source, "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mirror_claims_the_figures_of_the_card_only_for_the_same_scores(folder, mirror, tmp_path):
    assert "data, figures, limits, licence and citation, which hold here" in (mirror / "README.md").read_text()
    source = changed(folder, tmp_path / "ours", resize_like="scikit-image", do_square_crop=True, do_center_crop=False,
                     size={"height": 224, "width": 224})  # fmt: skip
    remarks = export_format(source, "timm", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert remarks[0] in text
    assert "data, limits, licence and citation" in text
    assert "its figures were measured with that folder's preparation" in text


def test_one_channel_becomes_three_of_which_two_are_empty(tmp_path):
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**CHANNELS_1)).eval()
    remarks = write_timm(tmp_path, model, torchxrayvision_processor())
    assert "timm cannot resize as scikit-image does" in remarks[0]
    back = read_source(f"timm:{tmp_path}").build()
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        three = back(gray.expand(-1, 3, -1, -1)).logits
        torch.testing.assert_close(three, model(gray).logits, atol=1e-5, rtol=1e-5)
    settings = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert (settings["crop_mode"], settings["mean"], settings["input_size"]) == ("center", [0.5] * 3, [3, 224, 224])


@pytest.mark.parametrize("target", ["timm", "torchxrayvision"])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TINY, r"its backbone is densenet; expected DenseNet121"),
        ({"head_hidden_size": 512}, "its head has a hidden layer"),
        ({"label_parents": {"Edema": "Lung Opacity"}}, "products along a label hierarchy"),
        ({"uncertainty_policies": {"Edema": "u-multiclass"}}, r"three classes per observation \(U-MultiClass\)"),
    ],
)
def test_what_a_format_cannot_express_is_refused_in_one_line(target, config, reason):
    with pytest.raises(FormatError, match=f"^{target} cannot express this model: .*{reason}") as caught:
        refuse_model(CheXpertConfig(**config), target)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "timm", "--output", "out"], "timm cannot express this model: its backbone is densenet"),
        (["--format", "timm"], "--format takes --output FOLDER and neither --runtime"),
        (["--format", "timm", "--output", "out", "--runtime", "onnx"], "neither --runtime, --precision nor"),
        (["--output", "out"], "Expected --runtime or --format, got neither"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(
    tiny_folder, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chexpert-hf", "export", "--model", str(tiny_folder), *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [tiny_folder.name]
