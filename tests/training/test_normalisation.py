import datasets
import pytest
import torch

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.data import load_data
from chexpert_hf.training.initial_model import expect_trainable_batches
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.trainer import build_trainer

from ..conftest import TINY


def images(count: int) -> datasets.Dataset:
    """A training split of so many images, each of another patient."""
    names = [f"patient{n}" for n in range(count)]
    return datasets.Dataset.from_dict(
        {"patient": names, "study": names, "labels": [[float(n % 2)] * 14 for n in range(count)]}
    )


def recipe(**values: object) -> Recipe:
    return Recipe(
        **{"observations": OBSERVATIONS, "init": "random", "architecture": TINY, "image_size": 12, "batch_size": 8}
        | values
    )


def network(blocks: list[int]) -> CheXpertForImageClassification:
    return CheXpertForImageClassification(CheXpertConfig(**TINY | {"block_config": blocks}))


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4])
def test_the_size_that_is_named_is_the_smallest_that_trains_on_a_single_image(num_blocks):
    model = network([1] * num_blocks).train()
    architecture = TINY | {"block_config": [1] * num_blocks}
    smallest = {1: 5, 2: 13, 3: 29, 4: 61}[num_blocks]
    with pytest.raises(
        RecipeError, match=rf"^9 training images in batches of 8 .* set --image-size to at least {smallest}, "
    ):
        expect_trainable_batches(recipe(image_size=smallest - 1, architecture=architecture), model, images(9))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, 3, smallest - 1, smallest - 1))

    expect_trainable_batches(recipe(image_size=smallest, architecture=architecture), model, images(9))
    model(torch.randn(1, 3, smallest, smallest))


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 8),
        ({}, 10),
        ({"drop_last": True}, 9),
        ({"freeze_backbone": True}, 9),
        ({"batch_size": 3}, 9),
    ],
)
def test_what_leaves_no_single_image_is_not_refused(values, count):
    expect_trainable_batches(recipe(**values), network([2, 2]), images(count))


def test_batches_of_one_image_are_refused_with_what_helps():
    with pytest.raises(RecipeError, match=r"or --batch-size to at least 2\.$"):
        expect_trainable_batches(recipe(batch_size=1, drop_last=True), network([2, 2]), images(8))


def test_each_part_that_a_calibration_trains_without_is_looked_at():
    # Two of 18 images in three parts of 6 leave 12; batches of 11 then end with one.
    folds = recipe(calibration_folds=3, checkpoint="last", batch_size=11)
    with pytest.raises(RecipeError, match=r"^12 training images in batches of 11 give a batch of one image"):
        expect_trainable_batches(folds, network([2, 2]), images(18))


def test_drop_last_that_leaves_nothing_is_refused():
    with pytest.raises(RecipeError, match="drop_last leaves no batch: there are 7 training images for batches of 8"):
        expect_trainable_batches(recipe(drop_last=True), network([2, 2]), images(7))


@pytest.mark.parametrize(
    ("devices", "num_images", "is_refused"),
    [
        (2, 18, True),
        (2, 19, True),
        (2, 17, True),
        (2, 20, False),
        (2, 16, False),
        (3, 24 + 7, True),
        (3, 24 + 6, False),
    ],
)
def test_what_the_gpus_of_one_process_get_of_the_last_batch_is_looked_at(monkeypatch, devices, num_images, is_refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    shares = [len(part) for part in torch.arange(num_images % (8 * devices)).chunk(devices) if len(part)]
    assert (1 in shares) == is_refused  # as DataParallel scatters it
    if is_refused:
        with pytest.raises(RecipeError, match="give a batch of one image"):
            expect_trainable_batches(recipe(), network([2, 2]), images(num_images))
    else:
        expect_trainable_batches(recipe(), network([2, 2]), images(num_images))


def test_synchronised_statistics_are_refused_without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"sync_batch_norm needs GPUs: .* Omit --sync-batch-norm"):
        expect_trainable_batches(recipe(sync_batch_norm=True), network([2, 2]), images(8))


def test_synchronised_statistics_are_refused_in_one_process_with_several_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match=r"needs a process for each of the 2 GPUs: .* torchrun --nproc_per_node 2"):
        expect_trainable_batches(recipe(sync_batch_norm=True), network([2, 2]), images(8))


def test_a_synchronised_model_is_saved_as_any_other(tiny_model, tmp_path):
    pixel_values = torch.randn(2, 3, 64, 64)
    expected = tiny_model(pixel_values).logits
    write_phantoms(tmp_path / "phantoms", num_studies=8, seed=5)
    synchronised = recipe(sync_batch_norm=True)
    data = load_data(synchronised, tmp_path / "phantoms")
    trainer = build_trainer(synchronised, tiny_model, CheXpertImageProcessor(), data, tmp_path / "run")
    tiny_model = trainer.model
    assert isinstance(tiny_model.features.norm0, torch.nn.SyncBatchNorm)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tiny_model.modules())
    tiny_model.save_pretrained(tmp_path)
    loaded = CheXpertForImageClassification.from_pretrained(tmp_path)
    assert isinstance(loaded.features.norm0, torch.nn.BatchNorm2d)
    torch.testing.assert_close(loaded(pixel_values).logits, expected, atol=1e-6, rtol=1e-5)
