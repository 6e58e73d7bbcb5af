"""Transformers' own ways to fine-tune a saved model: the stock Trainer, and other labels."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS, PARENTS

from .conftest import TINY

RECORDS = {
    "operating_points": {"Edema": 0.3, "Fracture": 0.7},
    "operating_points_source": {"data": "made up"},
    "calibration": {"slopes": {"Edema": 1.2}},
    "policies_source": "made up",
}
HEADS = {
    "linear": {},
    "hidden": {"head_hidden_size": 32, "head_dropout": 0.5},
    "three classes": {
        "uncertainty_policies": {"Edema": "u-multiclass", "Fracture": "u-multiclass", "Pneumonia": "u-ones"}
    },
    "hierarchy": {"label_parents": PARENTS},
    "one channel": {"num_channels": 1},
}


def save_trained(config: CheXpertConfig, folder: Path) -> None:
    """Saves a model whose head has weights as no new one has them."""
    model = CheXpertForImageClassification(config)
    torch.nn.init.constant_(model.last_layer.weight, 10)
    torch.nn.init.ones_(model.last_layer.bias)
    model.save_pretrained(folder)


@pytest.fixture(params=HEADS)
def trained_folder(request, tmp_path) -> Path:
    """A saved model with everything in its config that belongs to its 14 observations."""
    folder = tmp_path / "trained"
    config = CheXpertConfig(**TINY, **RECORDS, **HEADS[request.param])
    save_trained(config, folder)
    CheXpertImageProcessor(
        size={"height": 64, "width": 64},
        **({"image_mean": [0.5], "image_std": [0.2]} if config.num_channels == 1 else {}),
    ).save_pretrained(folder)
    return folder


OTHER_LABELS = {
    "a number": ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    "two, whose names are transformers' defaults": ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
    "names": ({"id2label": {0: "TB", 1: "Normal"}}, ["TB", "Normal"]),
    "names both ways, indices as text": (
        {"num_labels": 2, "label2id": {"TB": "0", "Normal": "1"}, "id2label": {"0": "TB", "1": "Normal"}},
        ["TB", "Normal"],
    ),
    "indices alone": ({"label2id": {"Normal": 1, "TB": 0}}, ["TB", "Normal"]),
    "as many": ({"id2label": {index: f"finding {index}" for index in range(14)}}, [f"finding {i}" for i in range(14)]),
    "as many as the outputs of the head with three classes": ({"num_labels": 18}, [f"LABEL_{i}" for i in range(18)]),
}


def assert_new(layer: torch.nn.Linear) -> None:
    """Asserts that weights are from the uniform distribution of torch's Linear, with a bias of 0."""
    bound = layer.in_features**-0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.5)
    assert not layer.bias.any()


@pytest.mark.parametrize("wanted", OTHER_LABELS)
def test_other_labels_give_a_new_head_and_a_config_without_the_old_ones(trained_folder, tmp_path, wanted):
    arguments, names = OTHER_LABELS[wanted]
    model = AutoModelForImageClassification.from_pretrained(trained_folder, ignore_mismatched_sizes=True, **arguments)
    model.save_pretrained(tmp_path / "new")
    CheXpertImageProcessor.from_pretrained(trained_folder).save_pretrained(tmp_path / "new")

    config = CheXpertConfig.from_pretrained(tmp_path / "new")
    assert AutoConfig.from_pretrained(trained_folder, **arguments).to_diff_dict() == config.to_diff_dict()
    assert config.id2label == model.config.id2label == dict(enumerate(names))
    assert config.label2id == {name: index for index, name in enumerate(names)}
    assert config.uncertainty_policies == dict.fromkeys(names, "u-ignore")
    assert config.operating_points == dict.fromkeys(names, 0.5)
    for field in ("operating_points_source", "calibration", "policies_source", "label_parents"):
        assert getattr(config, field) is None, field

    assert_new(model.last_layer)
    old = CheXpertForImageClassification.from_pretrained(trained_folder)
    for name, tensor in old.features.state_dict().items():
        assert torch.equal(model.features.state_dict()[name], tensor), name

    pixel_values = torch.randn(2, config.num_channels, 64, 64)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        logits = model(pixel_values).logits
        torch.testing.assert_close(again(pixel_values).logits, logits, atol=1e-6, rtol=1e-5)
    assert logits.shape == (2, len(names))


def test_observations_that_stay_keep_their_policies_and_their_place_in_the_hierarchy(tmp_path):
    policies = {"Edema": "u-ones", "Pneumonia": "u-multiclass", "Fracture": "u-zeros"}
    config = CheXpertConfig(**TINY, **RECORDS, uncertainty_policies=policies, label_parents=PARENTS)
    save_trained(config, tmp_path)
    names = ["Lung Opacity", "Pneumonia", "Edema", "TB"]
    model = CheXpertForImageClassification.from_pretrained(
        tmp_path, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
    )
    assert model.config.uncertainty_policies == {
        "Lung Opacity": "u-ignore",
        "Pneumonia": "u-multiclass",
        "Edema": "u-ones",
        "TB": "u-ignore",
    }
    # Consolidation, between Pneumonia and Lung Opacity, is gone.
    assert model.config.label_parents == {"Pneumonia": "Lung Opacity", "Edema": "Lung Opacity"}
    assert model.config.operating_points == dict.fromkeys(names, 0.5)  # of a head that is gone
    assert model.config.calibration is None
    assert_new(model.last_layer)
    assert model.last_layer.out_features == 4 + 2


@pytest.mark.parametrize(
    "arguments", [{}, {"num_labels": 14}, {"id2label": dict(enumerate(CheXpertConfig().observations))}]
)
def test_the_same_labels_keep_the_head_and_all_about_it(trained_folder, arguments):
    old = CheXpertForImageClassification.from_pretrained(trained_folder)
    model = AutoModelForImageClassification.from_pretrained(trained_folder, ignore_mismatched_sizes=True, **arguments)
    assert torch.equal(model.last_layer.weight, old.last_layer.weight)
    assert model.config.to_diff_dict() == old.config.to_diff_dict()
    assert model.config.operating_points["Edema"] == 0.3
    assert model.config.calibration == RECORDS["calibration"]


def test_a_head_of_the_same_size_for_other_labels_is_reported_as_new(trained_folder, caplog):
    names = [f"finding {index}" for index in range(14)]
    _, info = CheXpertForImageClassification.from_pretrained(
        trained_folder, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    assert {name.rpartition(".")[2] for name in new} == {"weight", "bias"}
    if info["missing_keys"]:  # what does not fit in size is reported by transformers
        assert "was trained for other labels (No Finding, " in caplog.text


def test_a_model_with_a_new_head_does_not_go_by_the_name_of_the_old_one(tmp_path):
    told = {"model_name": "old", "warnings": ["Trained on old films."]}
    save_trained(CheXpertConfig(**TINY, **told), tmp_path)
    load = AutoModelForImageClassification.from_pretrained
    new = load(tmp_path, num_labels=3, ignore_mismatched_sizes=True).config
    assert (new.model_name, new.warnings) == (None, None)
    named = load(tmp_path, num_labels=3, ignore_mismatched_sizes=True, model_name="mine").config
    assert (named.model_name, named.warnings) == ("mine", None)
    same = load(tmp_path).config
    assert (same.model_name, same.warnings) == ("old", told["warnings"])


def test_another_set_of_three_class_observations_is_another_head(tmp_path):
    config = CheXpertConfig(**TINY, **RECORDS, uncertainty_policies={"Edema": "u-multiclass"})
    save_trained(config, tmp_path)
    model = CheXpertForImageClassification.from_pretrained(tmp_path, uncertainty_policies={"Fracture": "u-multiclass"})
    assert model.config.multiclass_observations == ("Fracture",)
    assert model.config.operating_points["Edema"] == 0.5
    assert model.config.calibration is None
    assert_new(model.last_layer)


def test_labels_that_are_set_on_a_loaded_config_count_too(trained_folder):
    config = AutoConfig.from_pretrained(trained_folder)
    config.num_labels = 3
    model = AutoModelForImageClassification.from_pretrained(trained_folder, config=config, ignore_mismatched_sizes=True)
    assert model.config.operating_points == {"LABEL_0": 0.5, "LABEL_1": 0.5, "LABEL_2": 0.5}
    model.config.id2label = {0: "TB", 1: "Normal", 2: "Other"}
    assert model.config.label2id == {"TB": 0, "Normal": 1, "Other": 2}
    assert CheXpertConfig(**model.config.to_dict()).observations == ("TB", "Normal", "Other")


def test_policies_that_are_set_on_a_loaded_model_need_not_name_each_observation(tiny_model):
    tiny_model.config.uncertainty_policies = {"Edema": "u-ones"}
    labels = torch.zeros(2, 14)
    labels[:, OBSERVATIONS.index("Edema")] = -1
    pixel_values = torch.randn(2, 3, 64, 64)
    expected = functional.binary_cross_entropy_with_logits(tiny_model(pixel_values).logits, labels.abs())
    assert tiny_model(pixel_values, labels=labels).loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"uncertainty_policies": {"Edema": "u-multiclass"}}),
        ({"uncertainty_policies": {"Edema": "u-multiclass"}}, {"uncertainty_policies": {}}),
        ({}, {"id2label": {0: "TB", 1: "Normal"}}),
    ],
)
def test_a_config_that_no_longer_fits_the_head_is_refused(before, after):
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, **before)).eval()
    model.config.update(after)
    with pytest.raises(ValueError, match=r"The head has 1[46] outputs, but .* need (16|14|2): pass id2label"):
        model(torch.zeros(1, 3, 64, 64))


def test_a_head_that_is_replaced_by_hand_learns_class_indices(tiny_model):
    tiny_model.config.id2label = {0: "TB", 1: "Normal"}
    tiny_model.classifier = torch.nn.Linear(tiny_model.classifier.in_features, 2)
    pixel_values = torch.randn(2, 3, 64, 64)
    losses = [tiny_model(pixel_values, labels=torch.tensor(labels)).loss for labels in ([1, 0], [[0, 1], [1, 0]])]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.id2label.update({3: "Opacity"}),
        lambda config: setattr(config, "label2id", {"TB": 0, "Normal": 1}),
    ],
)
def test_labels_that_are_changed_in_only_one_of_the_two_mappings_are_not_saved(tiny_model, tmp_path, change):
    change(tiny_model.config)
    with pytest.raises(StrictDataclassError, match="assign id2label a new dictionary to change the labels"):
        tiny_model.save_pretrained(tmp_path)
    tiny_model.config.id2label = {**dict(enumerate(OBSERVATIONS)), 3: "Cloud"}
    tiny_model.config.label2id = {name: str(index) for index, name in tiny_model.config.id2label.items()}
    tiny_model.save_pretrained(tmp_path)
    assert CheXpertConfig.from_pretrained(tmp_path).observations[3] == "Cloud"


def test_labels_that_contradict_their_number_are_refused(trained_folder):
    with pytest.raises(ValueError, match="num_labels is 3, but id2label names 2 labels"):
        AutoConfig.from_pretrained(trained_folder, num_labels=3, id2label={0: "TB", 1: "Normal"})
    with pytest.raises(StrictDataclassError, match=r"id2label has the indices \[1, 2\], expected 0, 1"):
        AutoConfig.from_pretrained(trained_folder, id2label={1: "TB", 2: "Normal"})
    with pytest.raises(ValueError, match=r"but label2id is .*; expected the same pairs or one of them"):
        AutoConfig.from_pretrained(trained_folder, id2label={0: "TB", 1: "Normal"}, label2id={"TB": 1, "Normal": 0})


@pytest.mark.parametrize("labels", [{"num_labels": 0}, {"id2label": {}}, {"id2label": {0: "TB", 1: " "}}])
def test_a_model_without_labels_or_names_of_them_is_refused(trained_folder, labels):
    with pytest.raises(StrictDataclassError, match="expected at least one label, and a name for each"):
        AutoConfig.from_pretrained(trained_folder, **labels)


def test_a_model_made_anew_from_a_config_has_nothing_of_the_head_trained_with_it(trained_folder):
    config = AutoConfig.from_pretrained(trained_folder)
    before = config.to_dict()
    model = AutoModelForImageClassification.from_config(config)
    assert config.to_dict() == before  # it may be that of a model in use
    assert model.config.operating_points["Edema"] == 0.5
    assert model.config.calibration is None
    assert_new(model.last_layer)


def test_class_indices_are_one_positive_label_each(tiny_model):
    pixel_values = torch.randn(3, 3, 64, 64)
    one_hot = torch.zeros(3, 14)
    one_hot[0, 5] = one_hot[1, 0] = one_hot[2, 13] = 1
    indices = torch.tensor([5, 0, 13])
    assert torch.equal(tiny_model(pixel_values, labels=indices).loss, tiny_model(pixel_values, labels=one_hot).loss)
    # The Trainer counts three labels, where 3 x 14 take part.
    whole = tiny_model(pixel_values, labels=indices.int(), num_items_in_batch=3).loss
    torch.testing.assert_close(whole, tiny_model(pixel_values, labels=one_hot).loss)
    with pytest.raises(ValueError, match=r"class indices .*, expected 0 to 13"):
        tiny_model(pixel_values, labels=indices + 1)


@pytest.mark.parametrize("norms", [[], ["norm0", "norm", "norm1", "norm2", "norm5"]])
def test_a_lora_adapter_saved_alone_gives_the_same_logits_again(tiny_folder, tmp_path, norms):
    peft = pytest.importorskip("peft")

    def base() -> CheXpertForImageClassification:
        return AutoModelForImageClassification.from_pretrained(tiny_folder)

    config = peft.LoraConfig(r=2, target_modules=["conv1", "conv2"], modules_to_save=["classifier", *norms])
    model = peft.get_peft_model(base(), config)
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(5):  # images unlike those that the statistics are of
        model(pixel_values=torch.randn(8, 3, 64, 64) * 4 - 3, labels=torch.ones(8, 14)).loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    pixel_values = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected, before = model(pixel_values=pixel_values).logits, base()(pixel_values).logits
        assert torch.equal(again(pixel_values=pixel_values).logits, expected)
        assert (expected - before).abs().max() > 0.1
        merged = again.merge_and_unload()(pixel_values).logits
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def one_training_step(model: CheXpertForImageClassification) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and the bytes of activations that were kept for its backward pass."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    torch.manual_seed(1)
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.ones(4, 14)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train()(pixel_values, labels=labels).loss
    # What the recomputation keeps is not of interest, and nor are weights.
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    num_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, num_bytes


@pytest.mark.filterwarnings("ignore::FutureWarning")  # later releases of transformers call it activation checkpointing
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_keeps_less_and_changes_neither_gradients_nor_statistics(use_reentrant):
    torch.manual_seed(0)
    config = CheXpertConfig(**TINY | {"block_config": [4, 6]}, drop_rate=0.2)
    plain = CheXpertForImageClassification(config)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    gradients, num_bytes = one_training_step(plain)
    same_gradients, fewer_bytes = one_training_step(checkpointed)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, atol=0, rtol=0)
    for name, buffer in plain.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), buffer), name
    if not use_reentrant:  # the hooks do not see what the other kind keeps
        assert fewer_bytes < 0.6 * num_bytes


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_statistics_are_updated_by_each_step_under_gradient_checkpointing(tiny_model):
    tiny_model.gradient_checkpointing_enable()
    before = tiny_model.features.denseblock2.denselayer1.norm1.num_batches_tracked.item()
    for _ in range(3):
        one_training_step(tiny_model)
    for name, buffer in tiny_model.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert buffer.item() == before + 3, name


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_all_of_a_lora_adapter_is_trained_under_gradient_checkpointing(tiny_model, use_reentrant):
    peft = pytest.importorskip("peft")
    tiny_model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model = peft.get_peft_model(tiny_model, peft.LoraConfig(target_modules=["conv1", "conv2"])).train()
    model(pixel_values=torch.randn(4, 3, 64, 64), labels=torch.ones(4, 14)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 4  # two matrices for each convolution of four layers
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("head_hidden_size", [None, 8])
@pytest.mark.parametrize(
    "adapter",
    [{"target_modules": "all-linear"}, {"target_modules": ["conv1"], "modules_to_save": ["classifier"]}],
)
def test_maps_of_a_model_with_an_adapter_are_those_of_the_merged_model(adapter, head_hidden_size):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = CheXpertConfig(**TINY, head_hidden_size=head_hidden_size)
    model = peft.get_peft_model(CheXpertForImageClassification(config), peft.LoraConfig(**adapter)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3 * parameter.requires_grad
    pixel_values = torch.randn(2, 3, 64, 64)
    maps = model(pixel_values=pixel_values, output_saliency=True).saliency
    with model.disable_adapter():
        without = model(pixel_values=pixel_values, output_saliency=True).saliency
    merged = model.merge_and_unload()(pixel_values, output_saliency=True).saliency
    torch.testing.assert_close(maps, merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(without, merged, atol=1e-2)


def test_the_head_of_an_adapter_folder_is_loaded_and_not_initialised_anew(trained_folder, tmp_path):
    peft = pytest.importorskip("peft")
    options = {"id2label": {index: f"finding {index}" for index in range(14)}, "ignore_mismatched_sizes": True}
    base = AutoModelForImageClassification.from_pretrained(trained_folder, **options)
    lora = peft.LoraConfig(target_modules=["conv1"], modules_to_save=["classifier"])
    model = peft.get_peft_model(base, lora).eval()
    model.save_pretrained(tmp_path / "adapter")
    pixel_values = torch.randn(2, base.config.num_channels, 64, 64)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter", **options).eval()
    torch.testing.assert_close(again(pixel_values).logits, model(pixel_values=pixel_values).logits, atol=1e-5, rtol=0)
    assert again.config.calibration is None
