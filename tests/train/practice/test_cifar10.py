import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import models

from tests.train.practice.test_image_sets import write_binary
from train.practice import cifar10
from train.practice.densenet import DenseNet
from train.practice.image_sets import ImageSet, load_image_sets
from train.practice.pictures import MAPS_SHOWN, block_maps, confusion_matrix


def noise(count=4, channels=3, size=8, classes=3, mirrors=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % classes, tuple("abcdefghij"[:classes]), mirrors)


def fitted_figures(output):
    return json.loads((output / "figures.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_digits_are_learned_from_scratch(tmp_path, capsys):
    assert cifar10.main(["--data", "digits", "--output", str(tmp_path), "--epochs", "3"]) == 0
    figures = fitted_figures(tmp_path)
    assert figures["accuracy"] > 0.85  # three epochs; fifteen reach .98
    assert figures["right"] == round(figures["accuracy"] * 599)
    assert figures["low"] < figures["accuracy"] < figures["high"]
    assert f"{figures['right']} of 599 test images" in capsys.readouterr().out
    net = DenseNet(12, (6, 6), in_channels=1)
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))  # what is written is the network that was tested
    _, test = load_image_sets("digits")
    model = cifar10.build_model("two-block", load_image_sets("digits")[0])
    with torch.inference_mode():
        predicted = net.eval()(model.pixel_values_of(torch.from_numpy(test.images))).argmax(dim=1).numpy()
    assert (predicted == test.labels).sum() == figures["right"]
    for name in ("confusion.png", "feature_maps.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert("L")).std() > 10, name


def test_cifars_folder_is_trained_on(tmp_path):
    write_binary(tmp_path / "cifar", count=16, batches=1)
    arguments = ["--data", str(tmp_path / "cifar"), "--output", str(tmp_path / "run"), "--epochs", "1"]
    assert cifar10.main(arguments) == 0
    figures = fitted_figures(tmp_path / "run")
    assert (figures["train_images"], figures["test_images"], figures["learning_rate"]) == (16, 16, 0.1)


def test_bad_data_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert cifar10.main(["--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_transfer_begins_with_the_weights_given_and_sees_224_pixels():
    torch.manual_seed(0)
    weights = models.densenet121().state_dict()
    model = cifar10.build_model("fine-tuned", noise(), weights=lambda: weights).eval()
    for name, tensor in model.net.state_dict().items():
        assert name.startswith("classifier") or torch.equal(tensor, weights[name]), name
    pixel_values = model.pixel_values_of(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(
        pixel_values[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )
    one_channel = model.pixel_values_of(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert one_channel.shape == (1, 3, 224, 224)


def test_a_frozen_backbone_does_not_change_statistics_included():
    torch.manual_seed(0)
    weights = models.densenet121().state_dict()
    model = cifar10.build_model("frozen", noise(), weights=lambda: weights).train()
    model.size = 64  # faster; what is frozen does not depend on it
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    loss = model(torch.from_numpy(noise().images), torch.tensor([0, 1, 2, 0]))["loss"]
    loss.backward()
    before = model.net.classifier.weight.clone()
    optimizer.step()
    assert not torch.equal(model.net.classifier.weight, before)
    for name, tensor in model.net.features.state_dict().items():
        assert torch.equal(tensor, weights[f"features.{name}"]), name


def test_shifts_stay_within_an_eighth_and_keep_what_is_inside():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[0, 0, 8, 8] = 255
    torch.manual_seed(0)
    places = set()
    for _ in range(200):
        moved = cifar10.augmented(image, mirrors=False)
        assert moved.shape == image.shape
        (place,) = (moved[0, 0] == 255).nonzero().tolist()
        places.add(tuple(place))
    assert {row for row, _ in places} == {column for _, column in places} == {6, 7, 8, 9, 10}


def test_half_of_the_images_are_mirrored_where_a_mirrored_one_is_as_good():
    images = torch.arange(8, dtype=torch.uint8).expand(400, 1, 8, 8)
    torch.manual_seed(0)
    rising = (cifar10.augmented(images, mirrors=True)[:, 0, 4].long().diff(dim=1)[:, 3] > 0).float().mean()
    assert 0.4 < rising < 0.6
    assert (cifar10.augmented(images, mirrors=False)[:, 0, 4].long().diff(dim=1)[:, 3] > 0).all()


def test_pixels_are_normalised_by_the_training_images():
    train = noise(count=50)
    model = cifar10.build_model("two-block", train)
    pixel_values = model.pixel_values_of(torch.from_numpy(train.images))
    torch.testing.assert_close(pixel_values.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixel_values.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)


def test_rows_of_the_confusion_matrix_are_true_classes():
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@torch.inference_mode()
def test_maps_are_those_behind_stem_and_blocks():
    model = DenseNet(4, (2, 3)).eval()
    maps = block_maps(model, torch.randn(1, 3, 16, 16))
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        "stem": (8, 16, 16),
        "dense block 1": (16, 16, 16),
        "dense block 2": (20, 8, 8),
    }
    assert min(len(values) for values in maps.values()) >= MAPS_SHOWN


def test_the_big_cifar_network_is_the_papers():
    parameters = sum(p.numel() for p in cifar10.build_model("bc-100-12", noise(classes=10)).net.parameters())
    assert parameters == 769_162


@pytest.mark.parametrize("name", cifar10.MODELS)
def test_every_model_has_a_learning_rate(name):
    assert cifar10.LEARNING_RATES[name] > 0
