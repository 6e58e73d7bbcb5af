"""The initial model and image processor of a recipe, and a check of its batches for BatchNorm."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from chexpert_hf.configuration_chexpert import BACKBONE_FIELDS, CheXpertConfig
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import PAPER_PRESET
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.models.weights import load_imagenet_backbone
from chexpert_hf.training.cross_fitting import fold_of_images
from chexpert_hf.training.recipe import Recipe, RecipeError

_PAPER_SOURCE = "the best policy of each observation on the validation set, Irvin et al. 2019, table 3"
# Percentiles that become black and white, and the value of the median; see `to_gray_range`.
_GRAY_RANGE = {"low": 0.5, "high": 99.5, "median": 0.5}
_BACKBONE_FIELDS = (*BACKBONE_FIELDS, "drop_rate")


def build_model(recipe: Recipe) -> CheXpertForImageClassification:
    """The model of a recipe with its initial weights; random ones come from torch's global generator.

    Raises RecipeError, WeightsError or ModelFolderError if the architecture is invalid or the weights cannot be used.
    """
    if recipe.init not in ("imagenet", "random"):
        return _fine_tuned(recipe)
    unknown = set(recipe.architecture) - set(_BACKBONE_FIELDS)
    if unknown:  # the config would accept them silently
        raise RecipeError(
            f"architecture has no field {sorted(unknown)[0]!r}; expected: {', '.join(_BACKBONE_FIELDS[1:])}."
        )
    model = CheXpertForImageClassification(_config(recipe, recipe.architecture))
    if recipe.init == "imagenet":
        load_imagenet_backbone(model)
    return model


def _config(recipe: Recipe, backbone: Mapping[str, Any]) -> CheXpertConfig:
    try:
        return CheXpertConfig(
            **{"num_channels": recipe.num_channels, **backbone},
            id2label=dict(enumerate(recipe.observations)),
            head_hidden_size=recipe.head_hidden_size,
            head_dropout=recipe.head_dropout,
            uncertainty_policies=recipe.policies,
            policies_source=_PAPER_SOURCE if recipe.policy == PAPER_PRESET else "chosen in the recipe of this run",
            blank_labels=recipe.blank_labels,
            label_set=dict(recipe.label_set) or None,
            label_parents=dict(recipe.known_labels.parents) if recipe.unconditional else None,
            model_name=recipe.model_name,
            warnings=list(recipe.warnings) or None,
        )
    except StrictDataclassError as error:
        raise RecipeError(f"No model can be built from the recipe: {str(error).splitlines()[-1].strip()}") from error


def _fine_tuned(recipe: Recipe) -> CheXpertForImageClassification:
    """Starts from another model's backbone, and from its head if both have the same one for the same observations."""
    source = load_model(recipe.init)
    if source.config.num_channels != recipe.num_channels:
        raise RecipeError(
            f"num_channels is {recipe.num_channels}, but {recipe.init} expects {source.config.num_channels}; set that."
        )
    backbone = {name: getattr(source.config, name) for name in _BACKBONE_FIELDS}
    model = CheXpertForImageClassification(_config(recipe, backbone))
    model.features.load_state_dict(source.features.state_dict())
    same = ("observations", "multiclass_observations", "head_hidden_size")
    if all(getattr(model.config, name) == getattr(source.config, name) for name in same):
        model.classifier.load_state_dict(source.classifier.state_dict())
    return model


def build_processor(recipe: Recipe) -> CheXpertImageProcessor:
    """The image processor at the recipe's size: the fine-tuned model's, or one with ImageNet statistics.

    A single channel has the mean of the three channels' statistics.
    """
    values: dict[str, Any] = {"size": {"height": recipe.image_size, "width": recipe.image_size}}
    if recipe.init not in ("imagenet", "random"):
        return CheXpertImageProcessor.from_pretrained(model_folder(recipe.init), **values)
    values["gray_range"] = dict(_GRAY_RANGE) if recipe.gray_range else None
    if recipe.num_channels == 1:
        for name in ("image_mean", "image_std"):
            values[name] = [float(np.mean(getattr(CheXpertImageProcessor, name)))]
    return CheXpertImageProcessor(**values)


def num_devices() -> int:
    """The number of devices that share a step's batch: processes of a launcher, or the GPUs of a single process."""
    processes = PartialState().num_processes
    return processes if processes > 1 else max(1, torch.cuda.device_count())


def expect_statistics(recipe: Recipe, model: CheXpertForImageClassification, train: datasets.Dataset) -> None:
    """Checks that every batch of a run gives BatchNorm more than one value per channel, with RecipeError otherwise."""
    devices, gpus = num_devices(), torch.cuda.device_count()
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
    # The stem halves the image twice, rounding up; each transition halves the map, rounding down.
    divisor = 2 ** (len(model.config.block_config) - 1)
    smallest = next(size for size in count(1) if -(-size // 4) // divisor > 1)
    is_shared = recipe.sync_batch_norm and devices > 1
    for num_images in sizes:
        batches = f"batches of {recipe.batch_size}"
        if recipe.drop_last and num_images < recipe.batch_size * devices:
            raise RecipeError(
                f"drop_last leaves no batch: there are {num_images} training images for {batches} on {devices} "
                "device(s). Lower --batch-size."
            )
        has_single = not (recipe.freeze_backbone or is_shared) and _smallest_batch(recipe, num_images, devices) == 1
        if has_single and recipe.image_size < smallest:
            cure = "--batch-size to at least 2" if recipe.batch_size == 1 else "--drop-last, or another --batch-size"
            raise RecipeError(
                f"{num_images} training images in {batches} give a batch of one image, which BatchNorm cannot train on "
                f"at feature maps of 1 x 1: set --image-size to at least {smallest}, or {cure}."
            )


def _smallest_batch(recipe: Recipe, num_images: int, devices: int) -> int:
    """The number of images in the smallest batch of any device."""
    last = num_images % (recipe.batch_size * devices)
    if last == 0 or recipe.drop_last or PartialState().num_processes > 1:
        return recipe.batch_size  # between processes, the last batches are filled up with images from the beginning
    share = -(-last // devices)
    return last % share or share
