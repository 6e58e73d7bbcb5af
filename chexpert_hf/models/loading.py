"""Load the network and the image processor of a model, with one-line errors; a model's name and warnings."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from chexpert_hf.backbones_chexpert import BackboneError
from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.errors import ModelFolderError
from chexpert_hf.files import first_line
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.model_files import (
    ENSEMBLE_FILE,
    LOADED_FILES,
    NEEDED_FILES,
    ensemble_members,
    no_model,
    verify_checksums,
)
from chexpert_hf.models.repositories import model_folder

_verbosity_lock = Lock()

_MAX_SIDE = 8192  # pixels, of the images that a network gets


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Context manager: hide the table that transformers logs if weights are missing or do not fit the model.

    `load_model` reports them in one line instead. The log level of transformers holds for the whole process, so only
    one thread at a time is in this context; others wait.
    """
    with _verbosity_lock:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def load_model(model: str | Path, *, name: str | None = None) -> CheXpertForImageClassification:
    """Load the network of a model folder or repository in float32, from safetensors only.

    Args:
        model: Path of a folder, "nih" or id of a repository.
        name: The model's name in messages and `config.name_or_path`; `model` if None.

    Raises:
        HubError: If the model is not a local folder, and the repository cannot be downloaded.
        ModelFolderError: If there is no CheXpert model, or its weights do not fit its configuration.
        ChecksumError: If a file has changed since the folder was saved.
    """
    folder, name = model_folder(model), name or str(model)
    try:
        config, _ = CheXpertConfig.get_config_dict(folder)
        if not config and (folder / ENSEMBLE_FILE).is_file():
            raise ModelFolderError(
                f"{name} is an ensemble, and one model is expected here: name a member, {ensemble_members(folder)[0]}."
            )
        if not config:
            raise no_model(folder, name)
        if config.get("model_type") != CheXpertConfig.model_type:
            raise ModelFolderError(
                f"{name} holds a model of type {config.get('model_type')!r}, expected {CheXpertConfig.model_type!r}."
            )
        network: CheXpertForImageClassification
        with _without_warnings():
            network, info = CheXpertForImageClassification.from_pretrained(
                folder,
                dtype=torch.float32,  # else the network would compute in the type of the stored weights
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except StrictDataclassError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelFolderError(f"No model can be built from the config.json of {name!r}: {reason}") from error
    except ModelFolderError:
        raise
    except BackboneError as error:
        raise ModelFolderError(f"{name} cannot be loaded: {first_line(error, 500)}") from error
    except SafetensorError as error:
        raise ModelFolderError(
            f"The weights of {name!r} are damaged ({error}); copy or download them again."
        ) from error
    except OSError as error:
        raise ModelFolderError(
            f"No model could be loaded from {name!r}: {first_line(error, 500)} Expected a folder with config.json and "
            "model.safetensors, or the id of a repository that can be reached."
        ) from error
    except (ValueError, TypeError, AttributeError) as error:  # by values that the config does not check
        raise ModelFolderError(
            f"No model can be built from the config.json of {name!r}: {first_line(error)}"
        ) from error
    for kind, keys in ((kind, sorted(map(str, keys))) for kind, keys in info.items() if keys):
        raise ModelFolderError(
            f"The weights in {name!r} do not fit its config.json: {kind} {', '.join(keys[:5])}"
            f"{' ...' if len(keys) > 5 else ''}."
        )
    verify_checksums(folder, [name for name in LOADED_FILES if name in NEEDED_FILES or (folder / name).is_file()])
    network.config.name_or_path = name  # not the folder of a repository in the cache
    return network


def load_processor(folder: Path, *, name: str | None = None) -> CheXpertImageProcessor:
    """Load the image processor of a model folder. Error messages call the folder `name`, by default its path.

    Raises:
        ModelFolderError: If the folder has no image processor, or one with unusable values.
    """
    try:
        processor: CheXpertImageProcessor = CheXpertImageProcessor.from_pretrained(folder)
        if not 0 < min(processor.output_size) <= max(processor.output_size) <= _MAX_SIDE:
            raise ValueError(f"expected images of 1 to {_MAX_SIDE} pixels a side, got {processor.output_size}")
        # Most values can only be checked by using them.
        values = processor(np.zeros((8, 8), np.uint8), return_tensors="pt")["pixel_values"]
        if not values.isfinite().all():
            raise ValueError("the pixel values of a black image are not finite")
    except (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        if not (folder / IMAGE_PROCESSOR_NAME).is_file():
            raise ModelFolderError(
                f"{name or folder} has no image processor; expected {IMAGE_PROCESSOR_NAME} beside config.json."
            ) from error
        reason = first_line(error, limit=400).rstrip(".")
        raise ModelFolderError(
            f"The {IMAGE_PROCESSOR_NAME} of {name or folder} cannot be used: {reason}. Correct it, or copy or "
            "download it again."
        ) from error
    return processor


def model_name(model: CheXpertForImageClassification) -> str | None:
    """Return the config's `model_name`, else the repository's id; None for a local folder whose config has no name."""
    place = str(model.config.name_or_path or "")
    return model.config.model_name or (None if Path(place).is_dir() else place or None)


def model_warnings(models: Iterable[CheXpertForImageClassification]) -> tuple[str, ...]:
    """Return the warnings in the configs of a model or of an ensemble's members, each once."""
    return tuple(dict.fromkeys(text for model in models for text in model.config.warnings or ()))
