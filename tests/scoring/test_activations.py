import pytest
import torch

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.scoring.activations import Stage, feature_activations


def test_the_stages_of_densenet121_are_the_stem_four_blocks_three_transitions_and_the_last_maps():
    model = CheXpertForImageClassification(CheXpertConfig()).eval()
    stages = feature_activations(model, torch.randn(1, 3, 64, 96))
    assert [(stage.name, tuple(stage.maps.shape)) for stage in stages] == [
        ("stem", (64, 16, 24)),
        ("dense block 1", (256, 16, 24)),
        ("transition 1", (128, 8, 12)),
        ("dense block 2", (512, 8, 12)),
        ("transition 2", (256, 4, 6)),
        ("dense block 3", (1024, 4, 6)),
        ("transition 3", (512, 2, 3)),
        ("dense block 4", (1024, 2, 3)),
        ("last feature maps", (1024, 2, 3)),
    ]


def test_the_last_maps_are_those_that_the_head_sees_and_the_blocks_are_the_hidden_states(tiny_model):
    pixel_values = torch.randn(1, 3, 64, 64)
    stages = {stage.name: stage.maps for stage in feature_activations(tiny_model, pixel_values)}
    with torch.no_grad():
        output = tiny_model(pixel_values, output_hidden_states=True)
        logits = tiny_model.logits_from(stages["last feature maps"][None])
    torch.testing.assert_close(logits, output.logits)
    for number, expected in enumerate(output.hidden_states, start=1):
        torch.testing.assert_close(stages[f"dense block {number}"], expected[0])


def test_the_strongest_maps_are_those_that_differ_most_between_places():
    maps = torch.zeros(4, 3, 3)
    maps[0] = 100  # the same everywhere
    maps[1, 0, 0], maps[2, 0, 0] = 5, -9
    assert Stage("stem", maps).strongest(2) == [2, 1]


def test_several_radiographs_at_once_are_refused(tiny_model):
    with pytest.raises(ValueError, match="Expected pixel_values of one radiograph"):
        feature_activations(tiny_model, torch.zeros(2, 3, 64, 64))
