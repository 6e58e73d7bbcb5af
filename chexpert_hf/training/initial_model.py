"""The initial model and image processor of a recipe."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from chexpert_hf.configuration_chexpert import BACKBONE_FIELDS, CheXpertConfig
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import PAPER_PRESET, parents_among
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.models.weights import load_imagenet_backbone
from chexpert_hf.training.recipe import Recipe, RecipeError

PAPER_SOURCE = "the best policy of each observation on the validation set, Irvin et al. 2019, table 3"
CHOSEN_SOURCE = "chosen in the recipe of this run"

# Percentiles that become black and white, and the value of the median; see `to_gray_range`.
GRAY_RANGE = {"low": 0.5, "high": 99.5, "median": 0.5}

_BACKBONE_FIELDS = (*BACKBONE_FIELDS, "drop_rate")


def build_model(recipe: Recipe) -> CheXpertForImageClassification:
    """The model of a recipe with its initial weights; random ones come from torch's global generator.

    Raises:
        RecipeError: If the architecture is invalid, or the model to fine-tune has another number of channels.
        WeightsError: If ImageNet weights are asked for and cannot be fetched.
        ModelFolderError: If `init` is a model folder that cannot be loaded.
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
            policies_source=PAPER_SOURCE if recipe.policy == PAPER_PRESET else CHOSEN_SOURCE,
            blank_labels=recipe.blank_labels,
            label_parents=parents_among(recipe.observations) if recipe.unconditional else None,
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
    values["gray_range"] = dict(GRAY_RANGE) if recipe.gray_range else None
    if recipe.num_channels == 1:
        for name in ("image_mean", "image_std"):
            values[name] = [float(np.mean(getattr(CheXpertImageProcessor, name)))]
    return CheXpertImageProcessor(**values)
