import numpy as np
import pytest
import torch

pytest.importorskip("keras")

import keras
from transformers import AutoModelForImageClassification

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.formats import keras as twins
from chexpert_hf.labels import parents_among
from chexpert_hf.models.model_files import write_ensemble
from chexpert_hf.phantoms import render_phantom
from tests.conftest import TINY

FIVE = ("Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Fracture")
HEADS = {
    "linear": {},
    "one-channel": {"num_channels": 1},
    "hidden": {"head_hidden_size": 7, "head_dropout": 0.5},
    "multiclass": {"uncertainty_policies": {"Edema": "u-multiclass", "Fracture": "u-multiclass"}},
    "hidden-multiclass": {"head_hidden_size": 7, "uncertainty_policies": {"Consolidation": "u-multiclass"}},
    "hierarchy": {"label_parents": parents_among(FIVE)},
    "hidden-hierarchy-multiclass": {
        "head_hidden_size": 7,
        "label_parents": parents_among(FIVE),
        "uncertainty_policies": {"Edema": "u-multiclass"},
    },
    "three-blocks-odd-widths": {"growth_rate": 3, "block_config": [1, 3, 2], "num_init_features": 5, "bn_size": 3},
    "drop-rate": {"drop_rate": 0.3},
}


def model_of(head="linear"):
    """A tiny network with BatchNorm statistics that are not the initial ones, and its processor."""
    torch.manual_seed(0)
    config = CheXpertConfig(**{**TINY, "id2label": dict(enumerate(FIVE)), **HEADS[head]})
    model = CheXpertForImageClassification(config).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, config.num_channels, 64, 64) * 2 + 1)
        for parameter in model.classifier.parameters():
            parameter.mul_(3)  # else all scores are near .5
    mean = [0.5] * config.num_channels
    return model.eval(), CheXpertImageProcessor(size={"height": 64, "width": 64}, image_mean=mean, image_std=mean)


def folder_of(path, head="linear"):
    model, processor = model_of(head)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def outputs(twin, pixel_values):
    both = twin(pixel_values.numpy(), training=False)
    return {name: torch.from_numpy(np.array(keras.ops.convert_to_numpy(value))) for name, value in both.items()}


def test_another_backbone_than_a_densenet_is_refused():
    with pytest.raises(twins.KerasError, match="port of DenseNets only, but the backbone is resnet50"):
        twins.CheXpertKeras(CheXpertConfig(backbone="resnet50"), CheXpertImageProcessor())


@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_logits_and_maps_equal_pytorchs(head, tmp_path):
    folder = folder_of(tmp_path / "model", head)
    model = CheXpertClassifier.from_pretrained(folder).model
    pixel_values = torch.randn(3, model.config.num_channels, 64, 90) * 2
    theirs = model(pixel_values, output_saliency=True)
    ours = outputs(twins.from_model_folder(folder), pixel_values)
    assert theirs.logits.std(dim=0).min() > 1e-3  # else any network would do
    torch.testing.assert_close(ours["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours["saliency"], theirs.saliency, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (95, 32)])
@torch.inference_mode()
def test_padding_is_pytorchs_at_odd_and_even_sizes(size):
    model, processor = model_of()
    pixel_values = torch.randn(2, 3, *size)
    ours = outputs(twins.from_torch(model, processor), pixel_values)
    theirs = model(pixel_values, output_saliency=True)
    torch.testing.assert_close(ours["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours["saliency"], theirs.saliency, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_batch_norm_in_training_mode_is_pytorchs():
    model, processor = model_of()
    twin = twins.from_torch(model, processor)
    pixel_values = torch.randn(8, 3, 64, 64)
    ours = keras.ops.convert_to_numpy(twin(pixel_values.numpy(), training=True)["logits"])
    theirs = model.train()(pixel_values).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    after, n = twins.state_dict(twin), 8 * 32 * 32
    name = "features.norm0.running_mean"
    torch.testing.assert_close(after[name], model.state_dict()[name], rtol=1e-4, atol=1e-5)
    name = "features.norm0.running_var"  # to which n / (n - 1) makes .01 percent here
    torch.testing.assert_close(after[name], model.state_dict()[name], rtol=2 / n, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "one-channel", "hidden-hierarchy-multiclass"])
def test_the_way_back_gives_the_same_weights_bit_for_bit(head):
    model, processor = model_of(head)
    back = twins.to_torch(twins.from_torch(model, processor)).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("head", ["linear", "hidden-multiclass"])
@torch.inference_mode()
def test_a_folder_written_by_keras_loads_in_transformers_and_gives_the_same_logits(head, tmp_path):
    twin = twins.from_torch(*model_of(head))
    last = twin.get_layer(twins.HEAD).last
    last.kernel.assign(last.kernel * 1.7)  # as after training: not the weights that came in
    twin.get_layer("features-conv0").kernel.assign(twin.get_layer("features-conv0").kernel * 0.9)
    twins.write_back(twin, tmp_path / "written")
    pixel_values = torch.randn(3, twin.config.num_channels, 64, 64)
    expected = outputs(twin, pixel_values)["logits"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "written").eval()
    torch.testing.assert_close(loaded(pixel_values).logits, expected, rtol=0, atol=1e-4)
    before = model_of(head)[0](pixel_values).logits
    assert (before - expected).abs().max() > 0.01
    classifier = CheXpertClassifier.from_pretrained(tmp_path / "written")
    assert classifier.processor.image_mean == twin.processor.image_mean
    names = {path.name for path in (tmp_path / "written").iterdir()}
    assert {"config.json", "preprocessor_config.json", "modeling_chexpert.py", "labels.py", "reference.json"} <= names


def test_every_weight_is_asked_for_and_none_is_left_over():
    model, processor = model_of()
    twin, weights = twins.CheXpertKeras(model.config, processor), dict(model.state_dict())
    missing = {name: tensor for name, tensor in weights.items() if name != "features.norm5.bias"}
    with pytest.raises(twins.KerasError, match=r"features\.norm5\.bias is missing"):
        twins.load_state_dict(twin, missing)
    with pytest.raises(twins.KerasError, match=r"features\.extra\.weight is left over"):
        twins.load_state_dict(twin, weights | {"features.extra.weight": torch.zeros(1)})
    with pytest.raises(
        twins.KerasError, match=r"features\.conv0\.weight gives \(7, 7, 1, 8\), expected \(7, 7, 3, 8\)"
    ):
        twins.load_state_dict(twin, weights | {"features.conv0.weight": torch.zeros(8, 1, 7, 7)})
    with pytest.raises(twins.KerasError, match=r"features\.conv0\.weight gives \(7, 7, 8\), expected"):
        twins.load_state_dict(twin, weights | {"features.conv0.weight": torch.zeros(8, 7, 7)})


def test_the_twin_maps_all_variables_that_it_has():
    for head in HEADS:
        model, processor = model_of(head)
        twin = twins.CheXpertKeras(model.config, processor)
        names = set(twins.state_dict(twin))
        assert names == {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}, head


def test_an_ensemble_is_refused_and_so_is_a_folder_without_a_model(tmp_path):
    member = folder_of(tmp_path / "member")
    (tmp_path / "both").mkdir()
    write_ensemble(tmp_path / "both", [member, member])
    with pytest.raises(twins.KerasError, match="is an ensemble, expected one model"):
        twins.from_model_folder(tmp_path / "both")
    with pytest.raises(ValueError, match=r"No model could be loaded|holds no config"):
        twins.from_model_folder(tmp_path)


@torch.inference_mode()
def test_dropout_of_the_head_is_on_in_training_only():
    model, processor = model_of("hidden")
    twin = twins.from_torch(model, processor)
    features = np.random.default_rng(0).random((4, 3, 3, 20)).astype("float32")  # a head's own training: no BatchNorm
    head = twins.Head(model.config, "head")
    first, second = (np.array(keras.ops.convert_to_numpy(head(features, training=True))) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    first, second = (np.array(keras.ops.convert_to_numpy(head(features, training=False))) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert twin.get_layer(twins.HEAD).dropout.rate == 0.5


@torch.inference_mode()
def test_probabilities_of_a_phantom_are_the_classifiers(tmp_path):
    folder = folder_of(tmp_path / "model", "multiclass")
    image = render_phantom(seed=3).image
    twin = twins.from_model_folder(folder)
    logits = outputs(twin, twin.processor(image, return_tensors="pt")["pixel_values"])["logits"]
    expected = list(CheXpertClassifier.from_pretrained(folder).predict(image).probabilities.values())
    np.testing.assert_allclose(logits.sigmoid()[0], expected, atol=1e-5)


@torch.inference_mode()
def test_real_radiographs_are_scored_alike(real_data, tmp_path):
    classifier = CheXpertClassifier.from_pretrained(folder_of(tmp_path / "model"))
    files = sorted((real_data / "NIH-originals").rglob("*.png"))
    images = [classifier.read(file).image for file in files]
    pixel_values = classifier.processor(images, return_tensors="pt")["pixel_values"]
    ours = outputs(twins.from_model_folder(tmp_path / "model"), pixel_values)
    theirs = classifier.model(pixel_values, output_saliency=True)
    assert len(files) == 12
    torch.testing.assert_close(ours["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours["saliency"], theirs.saliency, rtol=0, atol=1e-3)
