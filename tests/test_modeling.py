import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.labels import OBSERVATIONS, PARENTS, ancestors

from .conftest import TINY


def test_logits_equal_torchvisions_densenet121_with_the_same_weights():
    torch.manual_seed(0)
    reference = torchvision.models.densenet121(num_classes=14).eval()
    model = CheXpertForImageClassification(CheXpertConfig()).eval()
    model.load_state_dict(reference.state_dict())  # strict: the names are torchvision's
    pixel_values = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, reference(pixel_values), atol=1e-5, rtol=0)
        # The order of the transitions' layers is another, which double precision tells from an error.
        expected = reference.double()(pixel_values.double())
        torch.testing.assert_close(model.double()(pixel_values.double()).logits, expected, atol=1e-12, rtol=0)


def test_transitions_take_a_quarter_of_torchvisions_arithmetic():
    convolutions = {128: 256 * 24 * 24, 256: 512 * 12 * 12, 512: 1024 * 6 * 6}  # in torchvision, at 96 pixels
    expected = sum(2 * channels * values for channels, values in convolutions.items()) * 3 // 4
    reference = torchvision.models.densenet121(num_classes=14)
    assert flops(reference) - flops(CheXpertForImageClassification(CheXpertConfig())) == expected


def flops(model: torch.nn.Module) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 96, 96))
    return counter.get_total_flops()


def test_a_new_model_is_initialised_like_torchvisions():
    model = CheXpertForImageClassification(CheXpertConfig())
    reference = torchvision.models.densenet121(num_classes=14).state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(reference[name].std().item(), rel=0.15), name


def test_the_mean_of_a_map_plus_the_bias_is_the_logit_of_a_linear_head(tiny_model):
    output = tiny_model(torch.randn(3, 3, 80, 64), output_saliency=True)
    assert output.saliency.shape == (3, 14, 10, 8)
    rebuilt = output.saliency.mean(dim=(2, 3)) + tiny_model.classifier.bias
    torch.testing.assert_close(rebuilt, output.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head_hidden_size", [None, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"uncertainty_policies": {"Cardiomegaly": "u-multiclass", "Fracture": "u-multiclass"}},
        {"label_parents": PARENTS, "uncertainty_policies": {"Pneumonia": "u-multiclass"}},
    ],
)
def test_maps_equal_autograd_grad_cam_before_its_relu(head_hidden_size, options):
    torch.manual_seed(1)
    config = CheXpertConfig(**TINY, head_hidden_size=head_hidden_size, **options)
    model = CheXpertForImageClassification(config).eval()
    captured = {}
    model.features.norm5.register_forward_hook(lambda module, inputs, output: captured.update(raw=output.clone()))
    pixel_values = torch.randn(2, 3, 64, 64)
    output = model(pixel_values, output_saliency=True)
    features = functional.relu(captured["raw"])
    torch.testing.assert_close(model.logits_from(features), output.logits, atol=1e-6, rtol=1e-6)
    for label in range(14):
        live = features.detach().requires_grad_(True)
        model.logits_from(live)[:, label].sum().backward()
        weights = live.grad.mean(dim=(2, 3), keepdim=True) * live.shape[2] * live.shape[3]
        expected = (weights * live).sum(dim=1)
        torch.testing.assert_close(output.saliency[:, label], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 8.0, 20.0, 200.0])
def test_maps_under_a_hierarchy_are_right_for_high_logits(bias, dtype):
    torch.manual_seed(1)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, label_parents=PARENTS)).eval()
    torch.nn.init.constant_(model.classifier.bias, bias)
    plain = CheXpertForImageClassification(CheXpertConfig(**TINY)).eval()
    plain.load_state_dict(model.state_dict())
    pixel_values = torch.randn(2, 3, 64, 64)
    each = plain(pixel_values, output_saliency=True)
    maps = model.to(dtype)(pixel_values.to(dtype), output_saliency=True).saliency.float()
    conditional = each.logits.double().clamp(max=30).detach().requires_grad_()  # at 30, float64 is exact
    for name in OBSERVATIONS:
        path = [OBSERVATIONS.index(one) for one in (name, *ancestors(name))]
        log_p = functional.logsigmoid(conditional[:, path]).sum(dim=1)
        (shares,) = torch.autograd.grad((log_p - torch.log(-torch.expm1(log_p))).sum(), conditional)
        expected = torch.einsum("bl,blhw->bhw", shares.float(), each.saliency)
        tolerance = 1e-5 if dtype == torch.float32 else 0.1 * expected.abs().max().item()
        torch.testing.assert_close(maps[:, OBSERVATIONS.index(name)], expected, atol=tolerance, rtol=1e-4)


def test_maps_in_bf16_are_those_in_float32_within_two_percent(tiny_model):
    pixel_values = torch.randn(2, 3, 64, 64)
    exact = tiny_model(pixel_values, output_saliency=True).saliency
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = tiny_model(pixel_values, output_saliency=True).saliency.float()
    strongest = exact.abs().amax()
    assert ((maps - exact).abs() / strongest).max() < 2e-2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("head_hidden_size", [None, 24])
def test_maps_of_a_quantised_head_are_those_in_float32_within_two_percent(head_hidden_size):
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, head_hidden_size=head_hidden_size)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    pixel_values = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        maps, expected = (each(pixel_values, output_saliency=True).saliency for each in (quantised, model))
    assert (maps - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("head_hidden_size", [None, 24])
def test_maps_of_a_head_that_accelerate_offloads_are_those_of_the_model(head_hidden_size, tmp_path):
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, head_hidden_size=head_hidden_size)).eval()
    model.save_pretrained(tmp_path)
    offloaded = CheXpertForImageClassification.from_pretrained(
        tmp_path, device_map={"features": "cpu", "classifier": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps, expected = (each(pixel_values, output_saliency=True).saliency for each in (offloaded, model))
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_takes_the_processors_float32(tiny_model, dtype):
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = tiny_model(pixel_values).logits
        logits = tiny_model.to(dtype)(pixel_values).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=0.02, rtol=0.02)


def test_hidden_states_are_the_maps_after_each_dense_block():
    model = CheXpertForImageClassification(CheXpertConfig()).eval()
    captured = []
    for block in (model.features.denseblock1, model.features.denseblock4):
        block.register_forward_hook(lambda module, inputs, output: captured.append(output.clone()))
    hidden_states = model(torch.randn(1, 3, 64, 64), output_hidden_states=True).hidden_states
    assert [maps.shape[1] for maps in hidden_states] == [256, 512, 1024, 1024]  # Huang et al. 2017, table 1
    assert torch.equal(hidden_states[0], captured[0])
    assert torch.equal(hidden_states[3], captured[1])


def test_maps_and_hidden_states_come_only_on_request(tiny_model):
    output = tiny_model(torch.randn(1, 3, 64, 64))
    assert output.saliency is None
    assert output.hidden_states is None
    assert output.loss is None


def test_a_frozen_backbone_keeps_its_weights_and_its_batchnorm_statistics(tiny_model):
    tiny_model.freeze_backbone()
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in tiny_model.parameters() if p.requires_grad], lr=1.0)
    tiny_model.train()
    tiny_model(torch.randn(4, 3, 64, 64) + 3, labels=torch.ones(4, 14)).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in tiny_model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("more", [{}, {"num_labels": 2}])
def test_a_config_takes_its_labels_from_label2id_alone(more):
    config = CheXpertConfig(label2id={"TB": "1", "Normal": 0}, **more)
    assert config.observations == ("Normal", "TB")
    assert config.label2id == {"Normal": 0, "TB": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_channels": 2}, "num_channels is 2, expected 1 or 3"),
        ({"block_config": []}, "must be at least 1"),
        ({"drop_rate": 1.5}, "drop_rate is 1.5"),
        ({"head_dropout": 0.5}, "set head_hidden_size"),
        ({"uncertainty_policies": {"Edema": "u-maybe"}}, "Unknown uncertainty policy 'u-maybe'"),
        ({"uncertainty_policies": {"Oedema": "u-ones"}}, "'Oedema', which is not trained"),
        ({"label_parents": {"Edema": "Oedema"}}, "names 'Edema' under 'Oedema'"),
        ({"label_parents": {"Edema": "Fracture", "Fracture": "Edema"}}, "its own ancestor"),
        ({"operating_points": {"Edema": 50}}, "operating point of Edema is 50"),
        ({"id2label": {0: "Edema", 1: "Edema"}}, "may occur once"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(StrictDataclassError, match=message):
        CheXpertConfig(**values)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64)])
def test_pixel_values_of_another_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="pixel_values has shape"):
        tiny_model(torch.zeros(shape))


@pytest.mark.parametrize("value", [2, 255, -2, -9, math.inf, 1.01])
def test_label_values_that_mean_nothing_are_refused(tiny_model, value):
    labels = torch.zeros(2, 14)
    labels[1, 3] = value
    with pytest.raises(ValueError, match=f"labels has the value {value:g}, expected 1, 0, -1"):
        tiny_model(torch.zeros(2, 3, 64, 64), labels=labels)
    labels[1, 3] = math.nan
    tiny_model(torch.zeros(2, 3, 64, 64), labels=labels)


def test_labels_of_another_shape_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"labels has shape \(1, 5\), expected \(1, 14\)"):
        tiny_model(torch.zeros(1, 3, 64, 64), labels=torch.zeros(1, 5))


def test_weights_of_whole_images_are_not_taken_for_those_of_observations(tiny_model):
    with pytest.raises(ValueError, match=r"loss_weights has shape \(14,\), expected \(14, 14\)"):
        tiny_model(torch.zeros(14, 3, 64, 64), labels=torch.zeros(14, 14), loss_weights=torch.ones(14))


def test_a_removed_field_of_an_older_config_is_ignored(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chexpert", "map_offsets": {"Edema": [0.1, 0]}}))
    CheXpertConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "map_offsets" not in json.loads((tmp_path / "config.json").read_text())


def test_saving_and_loading_gives_the_same_logits_and_config(tiny_model, tiny_folder):
    loaded = CheXpertForImageClassification.from_pretrained(tiny_folder)
    before, after = tiny_model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    pixel_values = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(pixel_values).logits, tiny_model(pixel_values).logits, atol=1e-5, rtol=1e-5)
    assert loaded.config.observations == OBSERVATIONS
    assert loaded.config.uncertainty_policies == tiny_model.config.uncertainty_policies


def test_only_the_five_files_travel_with_a_saved_model(tiny_folder: Path):
    assert {path.name for path in tiny_folder.glob("*.py")} == {
        "backbones_chexpert.py",
        "configuration_chexpert.py",
        "image_processing_chexpert.py",
        "labels.py",
        "modeling_chexpert.py",
    }
