import json

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.errors import InputError
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import ModelFolderError
from tests.radiographs.test_dicom import FILM, make_dicom

from ..conftest import TINY


@pytest.fixture
def classifier(tiny_folder) -> CheXpertClassifier:
    return CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")


def gray_image(width: int = 70, height: int = 90, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_probabilities_are_the_sigmoid_of_the_models_logits(classifier):
    image = gray_image()
    with torch.no_grad():
        logits = classifier.model(**classifier.processor(image, return_tensors="pt")).logits[0]
    prediction = classifier.predict(image)
    assert list(prediction.probabilities) == list(OBSERVATIONS)
    assert list(prediction.probabilities.values()) == logits.sigmoid().tolist()


def test_a_list_gives_a_list_and_a_single_input_a_single_prediction(classifier, tmp_path):
    gray_image().save(tmp_path / "one.png")
    forms = [tmp_path / "one.png", str(tmp_path / "one.png"), (tmp_path / "one.png").read_bytes(), gray_image()]
    single = classifier.predict(np.asarray(gray_image()))
    several = classifier.predict([*forms, gray_image(seed=1)], batch_size=2)
    assert len(several) == 5
    for prediction in several[:4]:
        assert prediction.probabilities == pytest.approx(single.probabilities, abs=1e-6)
    assert several[4].probabilities != pytest.approx(single.probabilities, abs=1e-6)
    assert classifier.predict([]) == []
    column = Dataset.from_dict({"image": [str(form) for form in forms[:2]]}).cast_column("image", datasets.Image())[
        "image"
    ]
    # The last bit depends on the size of the batch.
    of_column, of_files = ([each.probabilities for each in classifier.predict(two)] for two in (column, forms[:2]))
    assert of_column == of_files
    assert len(of_column) == 2
    assert of_column[0] == pytest.approx(single.probabilities, abs=1e-6)


def test_a_model_that_is_trained_meanwhile_scores_in_evaluation_mode_and_goes_on_training():
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, drop_rate=0.5))
    classifier = CheXpertClassifier(model, CheXpertImageProcessor(size={"height": 64, "width": 64}))
    before, state = classifier.predict(gray_image()), {name: one.clone() for name, one in model.state_dict().items()}
    model.train()
    assert classifier.predict(gray_image()) == before
    assert model.training
    assert model.features.norm0.training
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    model.features.norm0.eval()  # frozen, as is usual in fine-tuning
    classifier.predict(gray_image())
    assert model.training
    assert not model.features.norm0.training


def test_scores_that_are_no_numbers_are_an_error_and_not_negative(classifier):
    torch.nn.init.constant_(classifier.model.classifier.weight, torch.nan)
    with pytest.raises(ModelFolderError, match="scores are not numbers: its weights or its image processor's values"):
        classifier.predict(gray_image())


def test_some_operating_points_may_be_set_on_a_loaded_model(classifier):
    classifier.model.config.operating_points = {"Edema": 0.0, "Fracture": 1}
    assert classifier.operating_points == {**dict.fromkeys(OBSERVATIONS, 0.5), "Edema": 0.0, "Fracture": 1}
    positives = classifier.predict(gray_image()).positives
    assert (positives["Edema"], positives["Fracture"]) == (True, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_folder_of_any_type_of_weights_is_computed_in_float32(tiny_model, tiny_folder, dtype):
    tiny_model.to(dtype).save_pretrained(tiny_folder)
    expected = CheXpertClassifier(tiny_model.float(), CheXpertImageProcessor.from_pretrained(tiny_folder))
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    assert classifier.model.dtype == torch.float32
    assert classifier.predict(gray_image()).probabilities == expected.predict(gray_image()).probabilities


def test_notes_of_the_reader_are_in_the_prediction(classifier):
    useless, plain = make_dicom(FILM, RescaleSlope=0, RescaleIntercept=0), make_dicom(FILM)
    noted, ordinary = classifier.predict([useless, plain])
    assert noted.notes == read_radiograph(useless).info["notes"]
    assert "RescaleSlope" in noted.notes[0]
    assert ordinary.notes == ()
    assert noted.probabilities == pytest.approx(ordinary.probabilities, abs=1e-6)


def test_positives_are_by_each_observations_operating_point(classifier):
    scores = classifier.predict(gray_image()).probabilities
    classifier.model.config.operating_points |= {"Edema": scores["Edema"], "Fracture": scores["Fracture"] + 1e-6}
    positives = classifier.predict(gray_image()).positives
    assert positives["Edema"]
    assert not positives["Fracture"]


def test_maps_have_the_radiographs_size_also_when_its_jpeg_was_scaled_down(classifier, tmp_path):
    large = gray_image(40, 30).resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    assert classifier.read(tmp_path / "large.jpg").image.width < 1600
    prediction = classifier.predict(tmp_path / "large.jpg", saliency=True)
    maps = np.stack(list(prediction.saliency.values()))
    assert maps.shape == (14, 1200, 1600)
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1, abs=0.05)
    assert prediction.probabilities == pytest.approx(classifier.predict(tmp_path / "large.jpg").probabilities, abs=1e-6)


def test_there_are_no_maps_unless_asked_for(classifier):
    saliency = classifier.predict(gray_image()).saliency
    assert len(saliency) == 0
    assert "Edema" not in saliency
    with pytest.raises(ValueError, match="There are no maps; ask for them with saliency=True"):
        saliency["Edema"]


def test_a_bad_input_is_an_error_that_names_its_file_or_its_place(classifier, tmp_path):
    bad, patient = tmp_path / "bad\n.png", tmp_path / "patient"
    bad.write_text("no image")
    with pytest.raises(RadiographError, match=r"^inputs\[1\]: Expected an image, the file is empty"):
        classifier.predict([gray_image(), b""])
    with pytest.raises(RadiographError, match=r"^bad\\x0a\.png: Expected a JPEG") as caught:
        classifier.predict(bad)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(RadiographError, match=r"^inputs\[2\] gone\.png: File not found"):
        classifier.predict([gray_image(), gray_image(), patient / "gone.png", b""])
    with bad.open("rb") as file, pytest.raises(RadiographError, match=r"^bad\\x0a\.png: Expected a JPEG"):
        classifier.predict(file)
    with pytest.raises(RadiographError, match=r"^bad\\x0a\.png: Expected a JPEG"):
        classifier.read(bad)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_errors_are_returned_in_the_places_of_their_inputs(classifier, tmp_path, batch_size):
    good = [gray_image(seed=seed) for seed in range(4)]
    inputs = [b"", good[0], tmp_path / "gone.png", good[1], good[2], b"no image", b"", good[3], b""]
    results = classifier.predict(inputs, errors="return", batch_size=batch_size)
    assert len(results) == len(inputs)
    for place, (source, result) in enumerate(zip(inputs, results, strict=True)):
        if isinstance(source, Image.Image):
            assert result.probabilities == pytest.approx(classifier.predict(source).probabilities, abs=1e-6)
        else:
            assert isinstance(result, RadiographError)
            assert str(result).startswith(f"inputs[{place}]")
    assert isinstance(classifier.predict(b"", errors="return"), RadiographError)
    assert [type(one) for one in classifier.predict([b"", b""], errors="return")] == [RadiographError] * 2
    with pytest.raises(InputError, match=r"errors='raise' or errors='return', got 'ignore'"):
        classifier.predict([], errors="ignore")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="Expected a folder with config"):
        CheXpertClassifier.from_pretrained(tmp_path / "none")


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelFolderError, match="model of type 'vit', expected 'chexpert'"):
        CheXpertClassifier.from_pretrained(tmp_path)


def test_weights_with_a_missing_layer_are_refused_and_not_made_up(tiny_folder):
    weights = load_file(tiny_folder / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"missing_keys classifier\.weight"):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_weights_of_another_architecture_are_refused(tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"growth_rate": 6}))
    with pytest.raises(ModelFolderError, match=r"do not fit its config.json: mismatched_keys"):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_a_processor_of_another_model_is_refused(tiny_folder):
    CheXpertImageProcessor(image_mean=[0.5], image_std=[0.25]).save_pretrained(tiny_folder)
    with pytest.raises(ModelFolderError, match="makes 1 channels, but the model expects 3"):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_a_folder_without_processor_damaged_weights_and_impossible_configs_are_refused(tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"growth_rate": 0}))
    with pytest.raises(ModelFolderError, match=r"No model can be built from .*: .*must be at least"):
        CheXpertClassifier.from_pretrained(tiny_folder)
    (tiny_folder / "config.json").write_text(json.dumps(config))
    whole = (tiny_folder / "model.safetensors").read_bytes()
    (tiny_folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelFolderError, match="are damaged"):
        CheXpertClassifier.from_pretrained(tiny_folder)
    (tiny_folder / "model.safetensors").write_bytes(whole)
    (tiny_folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelFolderError, match="has no image processor"):
        CheXpertClassifier.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    "changes",
    [
        *({"size": "big"}, {"size": -5}, {"image_mean": "x"}, {"rescale_factor": "big"}, {"gray_range": {"a": 1}}),
        *({"image_std": [1, 1]}, {"image_mean": []}, {"image_std": [0, 0, 0]}, {"size": {"shortest_edge": 5}}),
        *({"size": {"height": 10**12, "width": 64}}, {"do_center_crop": True, "crop_size": {"height": 0, "width": 0}}),
    ],
)
def test_wrong_values_in_the_file_of_the_processor_are_one_error_about_it(tiny_folder, changes):
    file = tiny_folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelFolderError, match=r"The preprocessor_config\.json of .* cannot be used: .*Correct it, or"):
        CheXpertClassifier.from_pretrained(tiny_folder)


@pytest.mark.parametrize("text", ["[1]", "5", '"x"', '{"model_type": "chexpert", "id2label": 5}'])
def test_json_of_another_kind_in_a_model_folder_is_one_error(tiny_folder, text):
    (tiny_folder / "preprocessor_config.json").write_text(text.replace('"id2label": 5', '"size": "big"'))
    with pytest.raises(ModelFolderError, match=r"The preprocessor_config\.json of .* cannot be used: "):
        CheXpertClassifier.from_pretrained(tiny_folder)
    (tiny_folder / "config.json").write_text(text)
    with pytest.raises(ModelFolderError, match=r"No model can be built from the config\.json of "):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_pickled_weights_are_not_read(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    torch.save({}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"model.safetensors"):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_a_model_with_one_channel_scores_radiographs():
    config = CheXpertConfig(**TINY, num_channels=1, id2label={0: "Edema"})
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5], image_std=[0.25])
    classifier = CheXpertClassifier(CheXpertForImageClassification(config), processor)
    assert list(classifier.predict(gray_image()).probabilities) == ["Edema"]
