"""Builds the initial model and image processor of a recipe, and checks that the recipe can be trained with them."""

import importlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from chexpert_hf.backbones_chexpert import Backbone, BackboneError
from chexpert_hf.configuration_chexpert import DENSENET_FIELDS, TIMM_PREFIX, CheXpertConfig, fields_of
from chexpert_hf.files import first_line
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import CHEXPERT, PAPER_PRESET
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.models.weights import load_imagenet_backbone
from chexpert_hf.training.cross_fitting import fold_of_images
from chexpert_hf.training.recipe import DEFAULT_IMAGE_SIZE, Recipe, RecipeError

_PAPER_SOURCE = "the best policy of each observation on the validation set, Irvin et al. 2019, table 3"
# Percentiles that become black and white, and the value of the median; see `to_gray_range`.
_GRAY_RANGE = {"low": 0.5, "high": 99.5, "median": 0.5}
_ARCHITECTURE_FIELDS = (*DENSENET_FIELDS, "drop_rate")
_BACKBONE_FIELDS = ("backbone", *_ARCHITECTURE_FIELDS)
_DEFAULT_BACKBONE = "densenet121"
_MAX_SIZE = 1024  # in pixels, of the search for the smallest size


def build_model(recipe: Recipe) -> CheXpertForImageClassification:
    """Build the model of a recipe with its initial weights: random, ImageNet's, or those of a model to fine-tune.

    Random weights come from torch's global generator. Raise RecipeError, WeightsError or ModelFolderError if the
    architecture is invalid or the weights cannot be used.
    """
    is_new = recipe.init in ("imagenet", "random")
    model = _new(recipe) if is_new else _fine_tuned(recipe)
    _expect_supported(recipe, model)
    if recipe.init == "imagenet":
        load_imagenet_backbone(model)
    return model


def _new(recipe: Recipe) -> CheXpertForImageClassification:
    unknown = set(recipe.architecture) - set(_ARCHITECTURE_FIELDS)
    if unknown:  # the config would accept them silently
        raise RecipeError(
            f"architecture has no field {sorted(unknown)[0]!r}; expected: {', '.join(_ARCHITECTURE_FIELDS)}."
        )
    config = _config(recipe, {**fields_of(recipe.backbone or _DEFAULT_BACKBONE), **recipe.architecture})
    try:
        return CheXpertForImageClassification(config)
    except BackboneError as error:
        raise RecipeError(f"No model can be built from the recipe: {first_line(error, 500)}") from error


def _expect_supported(recipe: Recipe, model: CheXpertForImageClassification) -> None:
    """Raise RecipeError if the backbone cannot be trained at the image size or with the options of the recipe."""
    network, size = model.config.network, image_size_of(recipe)
    if not _num_cells(model.features, size):
        raise RecipeError(f"image_size is {size}, but the backbone {network} takes no such images; raise --image-size.")
    if recipe.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise RecipeError(f"gradient_checkpointing is not for the backbone {network}; omit --gradient-checkpointing.")
    if recipe.sync_batch_norm and not model.features.supports_sync_batch_norm:
        raise RecipeError(f"sync_batch_norm is not for the backbone {network}; omit --sync-batch-norm.")


def _num_cells(features: Backbone, size: int) -> int:
    height, width = features.map_size(size, size)
    return height * width


def _config(recipe: Recipe, backbone: Mapping[str, Any]) -> CheXpertConfig:
    try:
        return CheXpertConfig(
            **{"num_channels": recipe.num_channels, **backbone},
            id2label=dict(enumerate(recipe.observations or CHEXPERT.names)),
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
    """Build a model that starts from the weights of the model `recipe.init`.

    The backbone is copied. The head is copied as a whole if both models have the same observations, hidden layer and
    multiclass observations (those with three outputs, one of them for "uncertain"). Otherwise, if neither model has a
    hidden layer or multiclass observations, the head's rows of shared observations are copied. The rest is random.
    """
    source = load_model(recipe.init)
    if source.config.num_channels != recipe.num_channels:
        raise RecipeError(
            f"num_channels is {recipe.num_channels}, but {recipe.init} expects {source.config.num_channels}; pass "
            f"--num-channels {source.config.num_channels}."
        )
    if recipe.backbone not in (None, source.config.network):
        raise RecipeError(
            f"backbone is {recipe.backbone!r}, but the model {recipe.init} has {source.config.network}; omit "
            "--backbone, or start from --init imagenet or random."
        )
    backbone = {name: value for name, value in source.config.to_dict().items() if name in _BACKBONE_FIELDS}
    model = CheXpertForImageClassification(_config(recipe, backbone))
    model.features.load_state_dict(source.features.state_dict())
    same = ("observations", "multiclass_observations", "head_hidden_size")
    if all(getattr(model.config, name) == getattr(source.config, name) for name in same):
        model.classifier.load_state_dict(source.classifier.state_dict())
    elif _has_row_per_observation(model.config) and _has_row_per_observation(source.config):
        head, other, names = model.classifier.state_dict(), source.classifier.state_dict(), source.config.observations
        rows = {row: names.index(name) for row, name in enumerate(model.config.observations) if name in names}
        for key, values in head.items() if rows else ():
            values[[*rows]] = other[key][[*rows.values()]]
        model.classifier.load_state_dict(head)
    return model


def _has_row_per_observation(config: CheXpertConfig) -> bool:
    return config.head_hidden_size is None and not config.multiclass_observations


def changes_to_initial(recipe: Recipe) -> list[str]:
    """Return lines for the user on how a run differs from the model that it fine-tunes; empty for a new model.

    If the initial model lacks observations of the run, a line names them. If the recipe sets no image size, a line says
    that the initial model's is used. If the recipe sets another size than the initial model's, a line names both.
    """
    if recipe.init in ("imagenet", "random"):
        return []
    folder, lines = model_folder(recipe.init), []
    names = CheXpertConfig.from_pretrained(folder).observations
    if new := [name for name in recipe.observations if name not in names]:
        kept = ", ".join(name for name in recipe.observations if name in names)
        advice = f"; --observations '{kept}' trains those that it has" if kept else ""
        lines.append(f"{recipe.init} has no output for {', '.join(new)}: new in the head{advice}.")
    size = CheXpertImageProcessor.from_pretrained(folder).longest_side
    if recipe.image_size is None:
        lines.append(f"Training at {size} pixels, as {recipe.init} was; --image-size sets another size.")
    elif recipe.image_size != size:
        lines.append(
            f"Training at {recipe.image_size} pixels, where {recipe.init} takes {size}: --image-size {size} keeps that."
        )
    return lines


def image_size_of(recipe: Recipe) -> int:
    """Return the side in pixels of a run's square images.

    It is the recipe's `image_size`. If that is None, it is the image size of the model to fine-tune, or
    `DEFAULT_IMAGE_SIZE` for a new model.
    """
    if recipe.image_size is not None:
        return recipe.image_size
    if recipe.init in ("imagenet", "random"):
        return DEFAULT_IMAGE_SIZE
    return int(CheXpertImageProcessor.from_pretrained(model_folder(recipe.init)).longest_side)


def build_processor(recipe: Recipe) -> CheXpertImageProcessor:
    """Build the image processor: a new one, or that of the model to fine-tune; both resize to the recipe's image size.

    A new one normalises by mean and standard deviation of ImageNet, or of a pretrained timm backbone. Both are three
    numbers, one per colour; a model with one input channel gets their average.
    """
    side = image_size_of(recipe)
    values: dict[str, Any] = {"size": {"height": side, "width": side}}
    if recipe.init not in ("imagenet", "random"):
        return CheXpertImageProcessor.from_pretrained(model_folder(recipe.init), **values)
    values["gray_range"] = dict(_GRAY_RANGE) if recipe.gray_range else None
    statistics = {name: list(getattr(CheXpertImageProcessor, name)) for name in ("image_mean", "image_std")}
    if recipe.init == "imagenet" and (recipe.backbone or "").startswith(TIMM_PREFIX):
        pretrained = importlib.import_module("timm").get_pretrained_cfg(str(recipe.backbone).removeprefix(TIMM_PREFIX))
        statistics = {"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)}
    for name, channels in statistics.items():
        values[name] = [float(np.mean(channels))] if recipe.num_channels == 1 else channels
    return CheXpertImageProcessor(**values)


def num_devices() -> int:
    """Return how many devices train at once; each takes a batch of the recipe's `batch_size` images per step.

    The result is the number of processes if torchrun started several, else the number of GPUs, or 1 without a GPU.
    """
    processes = PartialState().num_processes
    return processes if processes > 1 else max(1, torch.cuda.device_count())


def expect_trainable_batches(recipe: Recipe, model: CheXpertForImageClassification, train: datasets.Dataset) -> None:
    """Raise RecipeError if some batch of the run has a single value per channel, which BatchNorm cannot train on.

    Raise it also if `drop_last` leaves no batch, or if `sync_batch_norm` is set without GPUs, or with several GPUs in
    one process.
    """
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
        part = fold_of_images(train, recipe.calibration_folds)
        sizes += [int((part != fold).sum()) for fold in range(recipe.calibration_folds)]
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.features.modules())
    is_shared = recipe.sync_batch_norm and devices > 1
    for num_images in sizes:
        batches = f"batches of {recipe.batch_size}"
        if recipe.drop_last and num_images < recipe.batch_size * devices:
            raise RecipeError(
                f"drop_last leaves no batch: there are {num_images} training images for {batches} on {devices} "
                "device(s). Lower --batch-size."
            )
        has_single = (
            has_norm and not (recipe.freeze_backbone or is_shared) and _smallest_batch(recipe, num_images, devices) == 1
        )
        if has_single and _num_cells(model.features, image_size_of(recipe)) <= 1:
            smallest = bisect_left(range(_MAX_SIZE), 2, key=lambda size: _num_cells(model.features, size))
            cure = "--batch-size to at least 2" if recipe.batch_size == 1 else "--drop-last, or another --batch-size"
            raise RecipeError(
                f"{num_images} training images in {batches} give a batch of one image, which BatchNorm cannot train on "
                f"at feature maps of 1 x 1: set --image-size to at least {smallest}, or {cure}."
            )


def _smallest_batch(recipe: Recipe, num_images: int, devices: int) -> int:
    """Return the number of images in the smallest batch that any device gets in an epoch."""
    last = num_images % (recipe.batch_size * devices)
    if last == 0 or recipe.drop_last or PartialState().num_processes > 1:
        return recipe.batch_size  # between processes, the last batches are filled up with images from the beginning
    share = -(-last // devices)
    return last % share or share
