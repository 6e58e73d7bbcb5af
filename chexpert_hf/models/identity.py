"""A model's name and warnings, which its config holds and the path of its folder does not change."""

from collections.abc import Iterable
from pathlib import Path

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


def model_name(model: CheXpertForImageClassification) -> str | None:
    """`model_name` of the config, else the id of the repository; None for a folder whose config has no name."""
    place = str(model.config.name_or_path or "")
    return model.config.model_name or (None if Path(place).is_dir() else place or None)


def model_warnings(models: Iterable[CheXpertForImageClassification]) -> tuple[str, ...]:
    """The warnings of a model, or of the members of an ensemble, each once."""
    return tuple(dict.fromkeys(text for model in models for text in model.config.warnings or ()))
