"""DenseNet121 for chest radiographs in the Hugging Face ecosystem. Research software, not a medical device.

The public names are imported when they are first used, so that `import chexpert_hf` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_chexpert import CheXpertConfig
    from .datasets.loading import load_dataset
    from .image_processing_chexpert import CheXpertImageProcessor
    from .labels import COMPETITION_OBSERVATIONS, OBSERVATIONS
    from .modeling_chexpert import CheXpertForImageClassification
    from .radiographs.radiograph import RadiographError, read_radiograph
    from .scoring.classifier import CheXpertClassifier, Prediction

__version__ = "0.1.0"

DISCLAIMER = "Research software, not a medical device: not for diagnosis."

_HOMES = {
    "CheXpertConfig": "configuration_chexpert",
    "CheXpertImageProcessor": "image_processing_chexpert",
    "CheXpertForImageClassification": "modeling_chexpert",
    "CheXpertClassifier": "scoring.classifier",
    "Prediction": "scoring.classifier",
    "COMPETITION_OBSERVATIONS": "labels",
    "OBSERVATIONS": "labels",
    "RadiographError": "radiographs.radiograph",
    "load_chexpert": "datasets.loading",
    "load_dataset": "datasets.loading",
    "read_radiograph": "radiographs.radiograph",
}

__all__ = [
    "COMPETITION_OBSERVATIONS",
    "OBSERVATIONS",
    "CheXpertClassifier",
    "CheXpertConfig",
    "CheXpertForImageClassification",
    "CheXpertImageProcessor",
    "Prediction",
    "RadiographError",
    "load_dataset",
    "read_radiograph",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chexpert_hf' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name.startswith("CheXpert"):
        _register_with_transformers()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_with_transformers() -> None:
    """Lets the Auto classes and pipelines find the installed classes, without remote code.

    Not done by the classes' own files: these are also loaded as remote code, where registering would make the code of
    one model folder serve all others.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    from .configuration_chexpert import CheXpertConfig
    from .image_processing_chexpert import CheXpertImageProcessor
    from .modeling_chexpert import CheXpertForImageClassification

    AutoConfig.register(CheXpertConfig.model_type, CheXpertConfig, exist_ok=True)
    AutoModelForImageClassification.register(CheXpertConfig, CheXpertForImageClassification, exist_ok=True)
    AutoImageProcessor.register(
        CheXpertConfig, image_processor_classes={"torchvision": CheXpertImageProcessor}, exist_ok=True
    )
