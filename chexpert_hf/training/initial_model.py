"""The model and the image processor that a recipe begins with."""

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.hub.weights import load_imagenet_backbone
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.inference.classifier import load_model
from chexpert_hf.labels import parse_policies
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.training.recipe import Recipe, RecipeError

_BACKBONE_FIELDS = ("num_channels", "growth_rate", "block_config", "num_init_features", "bn_size", "drop_rate")


def build_model(recipe: Recipe) -> CheXpertForImageClassification:
    """A model as the recipe says, with initial weights; random ones come from torch's global generator.

    Raises:
        RecipeError: If the architecture is none.
        WeightsError: If ImageNet weights are asked for and cannot be fetched.
        ModelFolderError: If `init` is a model folder that cannot be loaded, or does not fit the recipe.
    """
    policies = parse_policies(recipe.policy, recipe.observations)
    if recipe.init not in ("imagenet", "random"):
        return _fine_tuned(recipe, policies)
    unknown = set(recipe.architecture) - set(_BACKBONE_FIELDS)
    if unknown:  # the config would take them in silence
        raise RecipeError(
            f"architecture has no field {sorted(unknown)[0]!r}; expected: {', '.join(_BACKBONE_FIELDS[1:])}."
        )
    try:
        config = CheXpertConfig(
            id2label=dict(enumerate(recipe.observations)),
            num_channels=recipe.num_channels,
            head_hidden_size=recipe.head_hidden_size,
            head_dropout=recipe.head_dropout,
            uncertainty_policies=policies,
            blank_labels=recipe.blank_labels,
            **recipe.architecture,
        )
    except StrictDataclassError as error:
        raise RecipeError(f"The recipe makes no model: {str(error).splitlines()[-1].strip()}") from error
    model = CheXpertForImageClassification(config)
    if recipe.init == "imagenet":
        load_imagenet_backbone(model)
    return model


def _fine_tuned(recipe: Recipe, policies: dict[str, str]) -> CheXpertForImageClassification:
    """Another model's weights; its head too, if it judges the same observations."""
    source = load_model(recipe.init)
    config = source.config
    same_head = config.observations == recipe.observations and config.head_hidden_size == recipe.head_hidden_size
    model = CheXpertForImageClassification(
        CheXpertConfig(
            **{name: getattr(config, name) for name in _BACKBONE_FIELDS},
            id2label=dict(enumerate(recipe.observations)),
            head_hidden_size=recipe.head_hidden_size,
            head_dropout=recipe.head_dropout,
            uncertainty_policies=policies,
            blank_labels=recipe.blank_labels,
        )
    )
    model.features.load_state_dict(source.features.state_dict())
    if same_head:
        model.classifier.load_state_dict(source.classifier.state_dict())
    return model


def build_processor(recipe: Recipe) -> CheXpertImageProcessor:
    """The image processor of the recipe: ImageNet statistics, averaged over the channels for a single-channel model."""
    size = {"height": recipe.image_size, "width": recipe.image_size}
    if recipe.num_channels == 3:
        return CheXpertImageProcessor(size=size)
    defaults = CheXpertImageProcessor
    return CheXpertImageProcessor(
        size=size, image_mean=[float(np.mean(defaults.image_mean))], image_std=[float(np.mean(defaults.image_std))]
    )
