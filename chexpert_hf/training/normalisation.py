"""Checks before the first step that every batch has enough values for BatchNorm's statistics."""

from itertools import count

import datasets
import torch
from accelerate import PartialState

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.training.cross_fitting import fold_of_images
from chexpert_hf.training.recipe import Recipe, RecipeError


def num_devices() -> int:
    """The number of devices that share a step's batch: processes of a launcher, or the GPUs of a single process."""
    processes = PartialState().num_processes
    return processes if processes > 1 else max(1, torch.cuda.device_count())


def expect_statistics(recipe: Recipe, model: CheXpertForImageClassification, train: datasets.Dataset) -> None:
    """Checks that every batch of a run gives BatchNorm more than one value per channel.

    Raises:
        RecipeError: If a batch of one image meets feature maps of 1 x 1, if `drop_last` leaves no batch, or if
            `sync_batch_norm` is set without GPUs or without a process for each.
    """
    gpus = torch.cuda.device_count()
    if recipe.sync_batch_norm and not torch.cuda.is_available():
        raise RecipeError(
            "sync_batch_norm needs GPUs: PyTorch's SyncBatchNorm does not run on CPUs. Omit --sync-batch-norm."
        )
    if recipe.sync_batch_norm and PartialState().num_processes == 1 and gpus > 1:
        raise RecipeError(
            f"sync_batch_norm needs a process for each of the {gpus} GPUs: start the training with torchrun "
            f"--nproc_per_node {gpus} -m train.train."
        )
    sizes = [len(train)]
    if recipe.calibration_folds and recipe.held_out_fold is None:
        part = fold_of_images(train, recipe.calibration_folds, recipe.blank_labels)
        sizes += [int((part != fold).sum()) for fold in range(recipe.calibration_folds)]
    for num_images in sizes:
        _expect_batches(recipe, len(model.config.block_config), num_images)


def _expect_batches(recipe: Recipe, num_blocks: int, num_images: int) -> None:
    devices = num_devices()
    if recipe.drop_last and num_images < recipe.batch_size * devices:
        raise RecipeError(
            f"drop_last leaves no batch: there are {num_images} training images for batches of {recipe.batch_size} on "
            f"{devices} device(s). Lower --batch-size."
        )
    is_enough = recipe.freeze_backbone or (recipe.sync_batch_norm and devices > 1)
    if is_enough or _smallest_batch(recipe, num_images, devices) > 1:
        return
    # The stem halves the image twice, rounding up; each transition halves the map, rounding down.
    smallest = next(size for size in count(1) if -(-size // 4) // 2 ** (num_blocks - 1) > 1)
    if recipe.image_size < smallest:
        cure = "--batch-size to at least 2" if recipe.batch_size == 1 else "--drop-last, or another --batch-size"
        raise RecipeError(
            f"{num_images} training images in batches of {recipe.batch_size} give a batch of one image, which "
            f"BatchNorm cannot train on at feature maps of 1 x 1: set --image-size to at least {smallest}, or {cure}."
        )


def _smallest_batch(recipe: Recipe, num_images: int, devices: int) -> int:
    """The number of images in the smallest batch of any device."""
    last = num_images % (recipe.batch_size * devices)
    if last == 0 or recipe.drop_last or PartialState().num_processes > 1:
        return recipe.batch_size  # between processes, the last batches are filled up with images from the beginning
    share = -(-last // devices)
    return last % share or share
