"""Training on another backbone than DenseNet121, and each command on the folder that comes out of it."""

import csv
import json
from pathlib import Path

import datasets
import pytest
import torch
import torchvision
from torch import nn

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.configuration_chexpert import NETWORKS, fields_of
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.card import card_problems
from chexpert_hf.training.initial_model import build_model, expect_trainable_batches
from chexpert_hf.training.recipe import BACKBONES, Recipe, RecipeError
from tests.commands import run

from ..conftest import TINY

pytest.importorskip("timm")

TIMM, TINY_TIMM = "timm:mobilenetv3_small_050", "timm:test_convnext"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=24, seed=3, valid_fraction=0.3)
    return root


SMALL = ("--image-size", 64, "--epochs", 1, "--batch-size", 8, "--workers", 0)


@pytest.mark.slow
def test_a_backbone_is_trained_and_scored_by_the_commands_and_named_on_its_card(
    monkeypatch, capsys, phantoms, tmp_path
):
    model, scores = tmp_path / "model", tmp_path / "scores.csv"
    commands = [
        ("train", phantoms, "--output", model, "--backbone", TINY_TIMM, "--init", "random", *SMALL),
        ("predict", phantoms / "valid", "--model", model, "--output", scores),
    ]
    for command in commands:
        code, out, err = run(monkeypatch, capsys, *command)
        assert code == 0, (command, out, err)
    assert json.loads((model / "config.json").read_text())["backbone"] == TINY_TIMM
    with scores.open() as rows:
        assert len(list(csv.DictReader(rows))) == len(list((phantoms / "valid").rglob("*.jpg")))
    card = (model / "README.md").read_text()
    assert "\nA test_convnext of timm (" in card
    assert "\n- timm\n" in card
    assert "wightman2019timm" in card
    assert "densenet" not in card.lower()
    assert card_problems(card) == []

    # The model goes on with its own backbone, and refuses another.
    next_run = ("train", phantoms, "--output", tmp_path / "next", "--init", model, *SMALL)
    code, _, err = run(monkeypatch, capsys, *next_run, "--backbone", "resnet50")
    assert code == 2
    assert f"backbone is 'resnet50', but the model {model} has {TINY_TIMM}; omit --backbone" in err
    old = CheXpertForImageClassification.from_pretrained(model).state_dict()
    new = build_model(Recipe(init=str(model), image_size=64)).state_dict()
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def test_each_backbone_of_the_recipe_is_a_network_and_the_default_is_densenet121():
    assert tuple(NETWORKS) == BACKBONES
    with torch.device("meta"):
        assert build_model(Recipe(init="random")).config.block_config == [6, 12, 24, 16]
        assert build_model(Recipe(init="random", backbone="densenet169")).config.block_config == [6, 12, 32, 32]
        assert build_model(Recipe(init="random", backbone="convnext_tiny")).config.backbone == "convnext_tiny"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "densenet161"}, "backbone is 'densenet161', expected one of: densenet121, .*, timm:NAME"),
        ({"backbone": "timm:https://somewhere"}, "backbone is 'timm:https://somewhere', expected one of"),
        ({"backbone": "timm:vit_tiny_patch16_224"}, "expected feature maps"),
        ({"backbone": TIMM, "gradient_checkpointing": True}, "omit --gradient-checkpointing"),
        ({"backbone": TIMM, "sync_batch_norm": True}, "omit --sync-batch-norm"),
        ({"backbone": "resnet50", "architecture": TINY}, "growth_rate is a field of DenseNets"),
        (
            {"backbone": "timm:inception_v3", "image_size": 64},
            "image_size is 64, but the backbone .* raise --image-size",
        ),
    ],
)
def test_a_backbone_that_cannot_be_trained_so_is_refused_in_one_line(values, message):
    with pytest.raises(RecipeError, match=message) as caught:
        build_model(Recipe(**{"init": "random", "image_size": 64} | values))
    assert len(str(caught.value).splitlines()) == 1


def test_imagenet_weights_are_those_of_the_backbone(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    reference = torchvision.models.resnet50()
    torch.save(reference.state_dict(), tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth")  # torchvision's newest ones
    model = build_model(Recipe(backbone="resnet50"))
    assert torch.equal(model.features.layer4[2].conv3.weight, reference.layer4[2].conv3.weight)


@pytest.mark.parametrize("backbone", ["resnet50", TIMM])
def test_the_size_that_is_named_is_the_smallest_that_trains_on_a_single_image(backbone):
    model = CheXpertForImageClassification(CheXpertConfig(**fields_of(backbone))).train()
    images = datasets.Dataset.from_dict({"labels": [[0.0] * 14] * 9})
    recipe = Recipe(init="random", backbone=backbone, batch_size=8, image_size=32)
    with pytest.raises(RecipeError, match="set --image-size to at least 33, or --drop-last"):
        expect_trainable_batches(recipe, model, images)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, 3, 32, 32))
    expect_trainable_batches(recipe.override(image_size=33), model, images)
    model(torch.randn(1, 3, 33, 33))


def test_a_network_without_batchnorm_trains_on_a_single_image_of_any_size():
    model = CheXpertForImageClassification(CheXpertConfig(backbone="convnext_tiny")).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    images = datasets.Dataset.from_dict({"labels": [[0.0] * 14] * 9})
    recipe = Recipe(init="random", backbone="convnext_tiny", batch_size=8, image_size=32)
    expect_trainable_batches(recipe, model, images)
    model(torch.randn(1, 3, 32, 32), labels=torch.ones(1, 14)).loss.backward()
