"""DenseNet121 for chest radiographs in the Hugging Face ecosystem. Research software, not a medical device.

The public names are imported when they are first used, so that `import chexpert_hf` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import calibrate as calibrate
    from .api import evaluate as evaluate
    from .api import localize as localize
    from .api import save_model_folder as save_model_folder
    from .configuration_chexpert import CheXpertConfig as CheXpertConfig
    from .datasets.loading import load_dataset as load_dataset
    from .image_processing_chexpert import CheXpertImageProcessor as CheXpertImageProcessor
    from .labels import COMPETITION_OBSERVATIONS as COMPETITION_OBSERVATIONS
    from .labels import OBSERVATIONS as OBSERVATIONS
    from .modeling_chexpert import CheXpertForImageClassification as CheXpertForImageClassification
    from .radiographs.radiograph import RadiographError as RadiographError
    from .radiographs.radiograph import read_radiograph as read_radiograph
    from .scoring.classifier import CheXpertClassifier as CheXpertClassifier
    from .scoring.classifier import Prediction as Prediction
    from .training.recipe import Recipe as Recipe
    from .training.run import train as train

__version__ = "0.1.0"

DISCLAIMER = "Research software, not a medical device: not for diagnosis."

_HOMES = {
    "COMPETITION_OBSERVATIONS": "labels",
    "OBSERVATIONS": "labels",
    "CheXpertClassifier": "scoring.classifier",
    "CheXpertConfig": "configuration_chexpert",
    "CheXpertForImageClassification": "modeling_chexpert",
    "CheXpertImageProcessor": "image_processing_chexpert",
    "Prediction": "scoring.classifier",
    "RadiographError": "radiographs.radiograph",
    "Recipe": "training.recipe",
    "calibrate": "api",
    "evaluate": "api",
    "load_chexpert": "datasets.loading",
    "load_dataset": "datasets.loading",
    "localize": "api",
    "read_radiograph": "radiographs.radiograph",
    "save_model_folder": "api",
    "train": "training.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chexpert_hf' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name.startswith("CheXpert"):
        _register_with_transformers()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _register_with_transformers() -> None:
    """Register this package's classes with transformers' Auto classes, so that models load without remote code.

    The files that define the classes do not register them. A model folder has copies of these files: if a copy
    registered its classes when it is loaded as remote code, all other models would use that copy, too.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    from .configuration_chexpert import CheXpertConfig
    from .image_processing_chexpert import CheXpertImageProcessor
    from .modeling_chexpert import CheXpertForImageClassification

    AutoConfig.register(CheXpertConfig.model_type, CheXpertConfig, exist_ok=True)
    AutoModelForImageClassification.register(CheXpertConfig, CheXpertForImageClassification, exist_ok=True)
    processors = {"torchvision": CheXpertImageProcessor}
    AutoImageProcessor.register(CheXpertConfig, image_processor_classes=processors, exist_ok=True)
