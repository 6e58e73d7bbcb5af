"""State dicts of torchvision's other networks: recognised by their weights, imported with equal logits, and back."""

import json
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from chexpert_hf import CheXpertForImageClassification
from chexpert_hf.formats.exports import write_timm
from chexpert_hf.formats.imports import TIMM_ARCHITECTURES, read_source
from chexpert_hf.models.weights import WeightsError
from tests.commands import run as run_command

from .foreign_networks import phantom_image, with_own_statistics

HEADS = {"densenet121": "classifier", "densenet169": "classifier", "densenet201": "classifier", "resnet50": "fc",
         "convnext_tiny": "classifier.2"}  # fmt: skip
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
LABELS = ("Edema", "Fracture", "Pneumonia")


@lru_cache(maxsize=1)
def network_of(name: str, num_outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return with_own_statistics(torchvision.models.get_model(name, num_classes=num_outputs), PIXELS)


def saved(path: Path, network: nn.Module) -> str:
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, path)
    return f"torchvision:{path}"


@torch.no_grad()
def assert_same_logits(model: CheXpertForImageClassification, network: nn.Module, rows: object = slice(None)) -> None:
    # In double precision, where the order of additions, which differs between processors, doesn't decide.
    expected = network.double()(PIXELS.double())[:, rows]
    network.float()
    assert expected.std() > 1e-3
    torch.testing.assert_close(model.double()(PIXELS.double()).logits, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "densenet121"])
@pytest.mark.slow
def test_a_network_is_recognised_and_gives_torchvisions_logits(name, tmp_path):
    network = network_of(name)
    foreign = read_source(saved(tmp_path / "model.pth", network), labels=LABELS)
    assert foreign.config.network == name
    assert foreign.config.observations == LABELS
    assert f"a {name} of torchvision (the file model.pth)" in foreign.origin.source
    model = foreign.build()
    head = network.get_submodule(HEADS[name])
    assert torch.equal(model.classifier.weight, head.weight)
    assert_same_logits(model, network)


class Wrapped(nn.Module):
    """A network of a training script: a body without its head, and a head of another name."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = body, body.fc
        body.fc = nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(pixel_values))


def test_prefixes_of_wrappers_and_other_names_of_the_head_do_not_matter(tmp_path):
    torch.manual_seed(0)
    wrapped = Wrapped(torchvision.models.resnet50(num_classes=3)).eval()
    assert_same_logits(read_source(saved(tmp_path / "a.pth", nn.DataParallel(wrapped)), labels=LABELS).build(), wrapped)
    network = torchvision.models.densenet121(num_classes=3)  # as in CheXNet's public reimplementations
    network.classifier = nn.Sequential(nn.Linear(1024, 3), nn.Sigmoid())
    around = nn.ModuleDict({"densenet121": network.eval()})
    model = read_source(saved(tmp_path / "b.pth", nn.ModuleDict({"module": around})), labels=["Edema", "", "Mass"])
    network.classifier = network.classifier[0]
    assert_same_logits(model.build(), network, [0, 2])


def test_imagenets_classes_get_a_new_head_and_names_of_networks_are_sources(tmp_path, monkeypatch):
    network = network_of("convnext_tiny", 1000)
    foreign = read_source(saved(tmp_path / "model.pth", network))
    assert "judges nothing" in foreign.remarks[0]
    assert not foreign.build().classifier.weight.any()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "convnext_tiny-983f1562.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    named = read_source("torchvision:convnext_tiny", labels=["TB", "Normal"])
    assert named.config.network == "convnext_tiny"
    assert "ConvNeXt_Tiny_Weights.IMAGENET1K_V1" in named.origin.source
    assert named.build().classifier.weight.shape == (2, 768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("layer4.2.conv3.weight"), "misses 1 weight 'features.layer4.2.conv3.weight'; ex"),
        (lambda weights: weights.update({"layer9.bias": torch.zeros(1)}), "has the unknown 1 weight 'layer9.bias'"),
        (
            lambda weights: weights.update({"fc2.weight": torch.zeros(3, 3)}),
            r"The head has several linear layers \(fc, fc2\); expected one",
        ),
        (lambda weights: weights.pop("fc.weight"), "has no linear layer classifier; its head is missing"),
        (
            lambda weights: [weights.pop(name) for name in [*weights] if name != "fc.weight"],
            "None of the weights is one of torchvision's densenet121, densenet169",
        ),
    ],
)
def test_what_is_no_such_network_is_refused_in_one_line(change, message, tmp_path):
    weights = dict(network_of("resnet50").state_dict())
    change(weights)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        read_source(f"torchvision:{tmp_path / 'odd.pth'}", labels=LABELS).build()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", TIMM_ARCHITECTURES[1:])
@pytest.mark.slow
def test_timm_gives_the_logits_of_an_exported_network_and_it_comes_back(name, tmp_path):
    timm, safetensors = pytest.importorskip("timm"), pytest.importorskip("safetensors.torch")
    foreign = read_source(saved(tmp_path / "model.pth", network_of(name)), labels=LABELS)
    model, folder = foreign.build(), tmp_path / "mirror"
    folder.mkdir()
    assert write_timm(folder, model, foreign.processor) == ()
    config = json.loads((folder / "config.json").read_text())
    theirs = timm.create_model(config["architecture"], num_classes=3)
    theirs.load_state_dict(safetensors.load_file(folder / "model.safetensors"))
    assert theirs.get_submodule(config["pretrained_cfg"]["classifier"]) is theirs.get_classifier()
    assert theirs.get_submodule(config["pretrained_cfg"]["first_conv"]).in_channels == 3
    back = read_source(f"timm:{folder}").build().state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    assert_same_logits(model, theirs.eval())


def test_the_command_imports_a_network_and_its_folder_can_predict(tmp_path, monkeypatch, capsys):
    run = partial(run_command, monkeypatch, capsys)
    source, out = saved(tmp_path / "model.pth", network_of("resnet50")), tmp_path / "out"
    code, _, err = run("import", source, "--output", out)
    assert (code, "model.pth does not say what its 3 outputs are; name them with --labels" in err) == (2, True)
    code, text, err = run("import", source, "--output", out, "--labels", "TB,,Silicosis")
    assert (code, err) == (0, "")
    assert "2 observations: TB, Silicosis." in text
    phantom_image().save(tmp_path / "radiograph.png")
    code, text, err = run("predict", tmp_path / "radiograph.png", "--model", out)
    assert code == 0, err
    assert "TB" in text
    assert "\nA ResNet-50 " in (out / "README.md").read_text()
