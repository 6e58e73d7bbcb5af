"""Backbones beside DenseNet121: torchvision's and timm's networks, with the same head, maps and refusals."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.backbones_chexpert import LAST_STAGE, BackboneError
from chexpert_hf.configuration_chexpert import NETWORKS, fields_of
from chexpert_hf.errors import ModelFolderError
from chexpert_hf.formats.exports import FormatError, refuse_model
from chexpert_hf.models.graph_files import GRAPH_FILES, Precision, RuntimeName
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.weights import WeightsError, imagenet_cache_path, load_imagenet_backbone
from chexpert_hf.scoring.graphs.conversion import measure_parity, write_graph
from chexpert_hf.scoring.graphs.quantisation import equalise
from chexpert_hf.scoring.graphs.sessions import SESSIONS

pytest.importorskip("timm")

TIMM = ("timm:resnet10t", "timm:mobilenetv3_small_050")
TORCHVISION = ("densenet169", "resnet50", "convnext_tiny")
HEADS = {"densenet169": "classifier", "resnet50": "fc", "convnext_tiny": "classifier.2"}


def spread(network: nn.Module) -> nn.Module:
    """A network in evaluation mode whose scales, shifts and statistics hide no layer."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point() and not name.startswith("classifier.bias"):
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) + (-0.5 if name.endswith(("mean", "bias")) else 0.5)
            )
        elif name.endswith("layer_scale"):
            tensor.fill_(0.1)
    return network.eval()


def model_of(network: str, **options: object) -> CheXpertForImageClassification:
    torch.manual_seed(0)
    return spread(CheXpertForImageClassification(CheXpertConfig(**fields_of(network), **options)))


def pixels(count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features_of_torchvision(network: str, reference: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    if network == "resnet50":
        body = torchvision.models.feature_extraction.create_feature_extractor(reference, ["layer4"])
        return body(pixel_values)["layer4"]
    return reference.features(pixel_values).relu()


@pytest.mark.parametrize("network", TORCHVISION)
def test_logits_are_those_of_torchvisions_network_with_the_same_weights(network):
    torch.manual_seed(0)
    reference = spread(getattr(torchvision.models, network)(num_classes=14))
    model = model_of(network)
    load_imagenet_backbone(model, reference.state_dict())
    model.classifier.load_state_dict(reference.get_submodule(HEADS[network]).state_dict())
    model, reference = model.double(), reference.double()  # there, the order of additions does not decide
    with torch.no_grad():
        expected = reference(pixels().double())
        output = model(pixels().double(), output_saliency=True)
    assert expected.std() > 0.01
    torch.testing.assert_close(output.logits, expected, atol=1e-9, rtol=1e-9)
    sums = output.saliency.mean(dim=(2, 3)) + model.classifier.bias
    torch.testing.assert_close(sums, expected, atol=1e-9, rtol=1e-9)  # a map is the share of each cell in the logit


@pytest.mark.parametrize("network", ["densenet169", "resnet50"])
def test_features_are_those_of_torchvisions_network_with_the_same_state_dict(network):
    torch.manual_seed(0)
    reference = spread(getattr(torchvision.models, network)())
    model = model_of(network)
    load_imagenet_backbone(model, reference.state_dict())
    gray = model_of(network, num_channels=1)
    load_imagenet_backbone(gray, reference.state_dict())
    # In double precision, where the order of additions, which differs between processors, doesn't decide.
    reference.double()
    of_one_channel = pixels(channels=1).double()
    expected = features_of_torchvision(network, reference, pixels().double())
    expected_of_gray = features_of_torchvision(network, reference, of_one_channel.expand(-1, 3, -1, -1))
    with torch.no_grad():
        torch.testing.assert_close(model.double().features(pixels().double()), expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(gray.double().features(of_one_channel), expected_of_gray, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", TIMM)
def test_features_are_those_of_timms_network(network):
    model = model_of(network)
    with torch.no_grad():
        torch.testing.assert_close(model.features(pixels()), model.features.network(pixels()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head_hidden_size", [None, 8])
@pytest.mark.parametrize("network", [*TORCHVISION, *TIMM])
def test_maps_equal_autograd_grad_cam_before_its_relu(network, head_hidden_size):
    model = model_of(network, head_hidden_size=head_hidden_size, id2label={0: "Edema", 1: "Fracture"}).double()
    output = model(pixels().double(), output_saliency=True)
    live = model.features(pixels().double()).detach().requires_grad_()
    logits = model.logits_from(live)
    torch.testing.assert_close(logits, output.logits, atol=1e-10, rtol=1e-10)
    for label in range(2):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), live, retain_graph=True)
        expected = (gradient.sum(dim=(2, 3), keepdim=True) * live).sum(dim=1)
        torch.testing.assert_close(output.saliency[:, label], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        ("densenet169", [256, 512, 1280, 1664]),  # Huang et al. 2017, table 1
        ("resnet50", [256, 512, 1024, 2048]),  # He et al. 2016, table 1
        ("convnext_tiny", [96, 192, 384, 768]),  # Liu et al. 2022, section 3
        ("timm:resnet10t", [64, 64, 128, 256, 512]),
    ],
)
def test_hidden_states_are_the_maps_after_each_block_of_the_paper(network, channels):
    model = model_of(network)
    with torch.no_grad():
        output, stages = model(pixels(1), output_hidden_states=True), model.stages(pixels(1))
    assert [maps.shape[1] for maps in output.hidden_states] == channels
    assert list(stages)[-1] == LAST_STAGE
    assert stages[LAST_STAGE].shape[1:] == (model.features.num_features, *model.features.map_size(64, 64))


@pytest.mark.parametrize("network", ["resnet50", "convnext_tiny", "timm:resnet10t"])
def test_a_frozen_backbone_gives_the_same_features_in_training(network):
    model = model_of(network)
    with torch.no_grad():
        expected = model.features(pixels())
        model.freeze_backbone()
        torch.testing.assert_close(model.train().features(pixels()), expected, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("network", ["resnet50", "convnext_tiny"])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(network):
    plain = model_of(network).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    recomputed = []
    last = [module for module in checkpointed.features.modules() if isinstance(module, nn.Conv2d)][-1]
    last.register_forward_hook(lambda *_: recomputed.append(1))
    for model in (plain, checkpointed):
        torch.manual_seed(2)
        model(pixels(), labels=torch.ones(2, 14)).loss.backward()
    assert len(recomputed) == 2
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(checkpointed.get_parameter(name).grad, parameter.grad, atol=0, rtol=0)
    for name, buffer in plain.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), buffer), name


def test_gradient_checkpointing_of_a_network_of_timm_is_refused():
    with pytest.raises(ValueError, match="does not support"):
        model_of(TIMM[0]).gradient_checkpointing_enable()


def test_a_new_network_is_initialised_as_its_library_does():
    for network in ("resnet50", "convnext_tiny"):
        reference = getattr(torchvision.models, network)().state_dict()
        model = CheXpertForImageClassification(CheXpertConfig(**fields_of(network)))
        own = model.features.state_dict()
        for name, tensor in model.features.published_weights(reference).items():
            if tensor.is_floating_point() and tensor.numel() > 1000:
                assert own[name].std().item() == pytest.approx(tensor.std().item(), rel=0.15, abs=1e-9), name


@torch.no_grad()
def test_equalising_a_resnet_before_int8_changes_neither_logits_nor_maps():
    model = model_of("resnet50").double()
    equal = equalise(model, pixels().double())
    wanted, got = (one(pixels().double(), output_saliency=True) for one in (model, equal))
    torch.testing.assert_close(got.logits, wanted.logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got.saliency, wanted.saliency, atol=1e-9, rtol=1e-9)
    changed = [name for name, tensor in equal.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert sum(name.endswith(("conv2.weight", "conv3.weight")) for name in changed) == 32  # two in each of 16 blocks


@pytest.mark.parametrize("runtime", [RuntimeName.ONNX, RuntimeName.OPENVINO])
@pytest.mark.parametrize("network", ["convnext_tiny", "timm:test_convnext", "timm:test_efficientnet"])
@pytest.mark.slow
def test_an_exported_graph_gives_the_networks_logits_and_maps(network, runtime, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    model, graph = model_of(network), tmp_path / GRAPH_FILES[runtime, Precision.FP32]
    write_graph(model, runtime, graph, (64, 64))
    parity = measure_parity(model, SESSIONS[runtime](graph, Precision.FP32), pixels(5))
    assert parity["max_abs_logit_difference"] < 1e-4
    assert parity["max_relative_saliency_difference"] < 1e-4


ISOLATED = """
import json, sys
sys.modules["chexpert_hf"] = None  # any import of it fails
import torch
from transformers import AutoModelForImageClassification
answers = {}
for name, folder in json.loads(sys.argv[1]).items():
    sys.modules.pop("timm", None)
    if name == "convnext_tiny":
        sys.modules["timm"] = None
    model, info = AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    with torch.no_grad():
        logits = model.double()(torch.linspace(-1, 1, 3 * 64 * 64).double().reshape(1, 3, 64, 64)).logits
    answers[name] = {"logits": logits[0].tolist(), "problems": [str(keys) for keys in info.values() if keys]}
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_saved_folder_works_in_a_process_without_this_package_and_without_timm_where_it_is_not_timms(tmp_path):
    folders, expected = {}, {}
    for network in ("convnext_tiny", TIMM[1]):
        folders[network] = str(tmp_path / str(len(folders)))
        model_of(network).save_pretrained(folders[network])
        with torch.no_grad():
            loaded = load_model(folders[network]).double()
            pixel_values = torch.linspace(-1, 1, 3 * 64 * 64).double().reshape(1, 3, 64, 64)
            expected[network] = loaded(pixel_values).logits[0].tolist()
    process = subprocess.run(
        [sys.executable, "-c", ISOLATED, json.dumps(folders)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])
    for network, logits in expected.items():
        assert answers[network]["problems"] == []
        assert answers[network]["logits"] == pytest.approx(logits, abs=1e-10)


def test_values_that_the_weights_do_not_hold_are_made_again_on_loading(tmp_path):
    model = model_of("timm:resnetblur18")  # its fixed filters are no part of the state dict
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected, got = (one.double()(pixels().double()).logits for one in (model, load_model(tmp_path)))
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_a_folder_of_timm_without_timm_is_refused_in_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    model_of(TIMM[1]).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelFolderError, match=r"timm:mobilenetv3_small_050 needs timm; pip install timm\.$") as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (
            "timm:vit_tiny_patch16_224",
            r"features of shape \(1, 197, 192\), expected feature maps \(batch, channels, h, w",
        ),
        ("timm:swin_tiny_patch4_window7_224", r"features of shape \(1, 7, 7, 768\), expected feature maps"),
        ("timm:nosuchnet", "timm cannot build the backbone timm:nosuchnet: Unknown model"),
    ],
)
def test_a_network_of_timm_without_feature_maps_is_refused(backbone, message):
    with pytest.raises(BackboneError, match=message):
        CheXpertForImageClassification(CheXpertConfig(backbone=backbone))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"backbone": "resnet51"},
            "backbone is 'resnet51', expected one of: densenet, resnet50, convnext_tiny, timm:NAME",
        ),
        ({"backbone": "timm:hf_hub:someone/network"}, "expected one of"),
        ({"backbone": "timm:local-dir:/etc"}, "expected one of"),
        ({"backbone": "resnet50", "block_config": [1, 2]}, "block_config is a field of DenseNets"),
        ({"backbone": "convnext_tiny", "drop_rate": 0.1}, "drop_rate is a field of DenseNets"),
    ],
)
def test_a_config_with_an_impossible_backbone_is_refused(values, message):
    with pytest.raises(StrictDataclassError, match=message):
        CheXpertConfig(**values)


def test_a_config_without_a_backbone_is_a_densenets_and_one_with_another_has_no_fields_of_densenets(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chexpert", "growth_rate": 16}))
    assert CheXpertConfig.from_pretrained(tmp_path).backbone == "densenet"
    CheXpertConfig(backbone="resnet50").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["backbone"] == "resnet50"
    assert not {"growth_rate", "block_config", "num_init_features", "bn_size", "drop_rate"} & stored.keys()
    assert CheXpertConfig.from_pretrained(tmp_path).network == "resnet50"


def test_the_networks_have_torchvisions_names_and_sizes():
    assert imagenet_cache_path("convnext_tiny").name == "convnext_tiny-983f1562.pth"
    for network, num_features in zip(NETWORKS, (1024, 1664, 1920, 2048, 768), strict=True):
        config = CheXpertConfig(**fields_of(network))
        assert config.network == network
        with torch.device("meta"):
            model = CheXpertForImageClassification(config)
        assert model.features.num_features == num_features
        reference = torchvision.models.get_model(network)
        names = model.features.published_weights(reference.state_dict()).keys()
        assert names == model.features.state_dict().keys()


def test_weights_of_another_network_are_refused():
    with pytest.raises(WeightsError, match=r"not for the model's backbone \(resnet50\); use init random"):
        load_imagenet_backbone(model_of("resnet50"), torchvision.models.resnet18().state_dict())


@pytest.mark.parametrize("target", ["timm", "torchxrayvision"])
def test_formats_of_other_libraries_refuse_networks_that_they_do_not_have(target):
    with pytest.raises(
        FormatError, match=rf"{target} cannot express this model: its backbone is convnext_tiny; expected DenseNet121"
    ):
        refuse_model(CheXpertConfig(backbone="convnext_tiny"), target)
