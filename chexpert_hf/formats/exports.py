"""Our models for timm (and so for transformers without remote code) and for torchxrayvision."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.image_utils import PILImageResampling

from chexpert_hf.configuration_chexpert import BACKBONE_FIELDS, CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.files import new_folder, require_empty
from chexpert_hf.formats.export_cards import timm_card, torchxrayvision_card
from chexpert_hf.formats.timm_models import ARCHITECTURE
from chexpert_hf.formats.torchxrayvision_models import processor as torchxrayvision_processor
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.scoring.classifier import CheXpertClassifier

TORCHXRAYVISION_FILE = "model.pt"
TORCHXRAYVISION_NAMES = {"Pleural Effusion": "Effusion"}
"""What torchxrayvision calls what CheXpert calls otherwise."""

_INTERPOLATIONS = {
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
    PILImageResampling.NEAREST: "nearest",
}


class FormatError(InputError):
    """A model that a format cannot express, with the reason."""


def export_format(model: str, target: str, output: Path) -> tuple[str, ...]:
    """Writes a model in another library's format.

    Args:
        model: Model folder, or repository id.
        target: "timm" or "torchxrayvision".
        output: Must be new or empty; it is there as a whole or not at all.

    Returns:
        Sentences for the user.

    Raises:
        FormatError: If the format cannot express the model.
        FolderError: If `output` is not new or empty, or cannot be written.
        ModelFolderError: If the model cannot be loaded.
    """
    require_empty(output)
    classifier = CheXpertClassifier.from_pretrained(model, device="cpu")
    if len(classifier.members) > 1:
        raise FormatError(f"{target} cannot express an ensemble; export its members one by one.")
    refuse_model(classifier.model.config, target)
    write = write_timm if target == "timm" else write_torchxrayvision
    with new_folder(output) as folder:
        return write(folder, classifier.model, classifier.processor)


def refuse_model(config: CheXpertConfig, target: str) -> None:
    """Refuses what is more than a DenseNet121 with one linear output per observation.

    Raises:
        FormatError: With the reason.
    """
    defaults = CheXpertConfig()
    others = [name for name in BACKBONE_FIELDS[1:] if getattr(config, name) != getattr(defaults, name)]
    reasons = (
        (bool(others), f"the architecture is no DenseNet121 ({', '.join(others)})"),
        (config.head_hidden_size is not None, "its head has a hidden layer"),
        (bool(config.label_parents), "its probabilities are products along a label hierarchy"),
        (bool(config.multiclass_observations), "its head has three classes per observation (U-MultiClass)"),
    )
    for applies, reason in reasons:
        if applies:
            raise FormatError(f"{target} cannot express this model: {reason}; expected DenseNet121 with a linear head.")


def write_timm(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor
) -> tuple[str, ...]:
    """A folder that `AutoModelForImageClassification` and `pipeline` load through timm, without remote code.

    Files come as three equal channels there; a model of one channel gets its kernels in the first and zeros in the
    others, which changes no bit.
    """
    settings, remarks = _timm_settings(processor)
    state_dict = _own_tensors(model)
    if model.config.num_channels == 1:
        name = "features.conv0.weight"
        state_dict[name] = torch.cat([state_dict[name], torch.zeros_like(state_dict[name]).repeat(1, 2, 1, 1)], dim=1)
    observations = model.config.observations
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(observations),
        "num_features": model.classifier.in_features,
        "label_names": list(observations),
        "problem_type": "multi_label_classification",
        "global_pool": "avg",
        "pretrained_cfg": {
            "architecture": ARCHITECTURE,
            "num_classes": len(observations),
            "first_conv": "features.conv0",
            "classifier": "classifier",
            **settings,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(timm_card(folder.name, model.config), encoding="utf-8")
    return remarks


def _timm_settings(processor: CheXpertImageProcessor) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How timm prepares images as the processor does, and what is not the same."""
    height, width = processor.output_size
    if processor.do_center_crop and not (height == width and processor.size["shortest_edge"]):
        raise FormatError("timm cannot express the image processor: it crops in another way than after shortest_edge.")
    share = height / processor.size["shortest_edge"] if processor.do_center_crop else 1.0
    is_centre = bool(processor.do_center_crop or processor.do_square_crop)
    settings = {
        "input_size": [3, height, width],
        "fixed_input_size": False,
        "interpolation": _INTERPOLATIONS[PILImageResampling(processor.resample)],
        "crop_pct": share,
        "crop_mode": "center" if is_centre else "squash",
        "mean": _three(processor.image_mean),
        "std": _three(processor.image_std),
    }
    if not processor.resize_like:
        return settings, ()
    return settings, (
        f"timm cannot resize as {processor.resize_like} does: the network is the same to the last bit, but its pixel "
        "values differ, and so do the scores of files.",
    )


def _three(values: Any) -> list[float]:
    return list(values) * (3 // len(values))


def write_torchxrayvision(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor
) -> tuple[str, ...]:
    """A file with what torchxrayvision's own DenseNet needs, and how to load it."""
    theirs = torchxrayvision_processor()
    for name in ("image_mean", "image_std", "do_rescale", "do_normalize"):
        if _plain(getattr(processor, name)) != _plain(getattr(theirs, name)):
            raise FormatError(
                "torchxrayvision cannot express this model: it feeds one channel in [-1024, 1024], and this model is "
                f"normalised otherwise ({name} is {_plain(getattr(processor, name))})."
            )
    config, (height, width) = model.config, processor.output_size
    if height != width:
        raise FormatError(
            f"torchxrayvision cannot express this model: it takes squares, not {height} x {width} pixels."
        )
    points = config.operating_points or {}
    checkpoint = {
        "state_dict": {
            **_own_tensors(model),
            "op_threshs": torch.tensor([points[name] for name in config.observations]),
        },
        "targets": [TORCHXRAYVISION_NAMES.get(name, name) for name in config.observations],
        "input_resolution": height,
    }
    torch.save(checkpoint, folder / TORCHXRAYVISION_FILE)
    card = torchxrayvision_card(folder.name, config, TORCHXRAYVISION_FILE)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if processor.do_square_crop and processor.resize_like:
        return ()
    return ("This model sees the whole radiograph: leave out XRayCenterCrop, which torchxrayvision's examples have.",)


def _plain(value: Any) -> Any:
    """A tuple as a list."""
    return list(value) if isinstance(value, tuple) else value


def _own_tensors(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
