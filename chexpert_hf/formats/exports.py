"""Export of models to timm (and so to transformers without remote code) and to torchxrayvision."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.files import make_readable, new_folder, require_empty, write_json, write_text
from chexpert_hf.formats.imports import TIMM_ARCHITECTURE, TIMM_RESAMPLING
from chexpert_hf.formats.torchxrayvision_models import processor as torchxrayvision_processor
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.publishing.card import read_template
from chexpert_hf.scoring.classifier import CheXpertClassifier

Remarks = tuple[str, ...]

_TORCHXRAYVISION_NAMES = {"Pleural Effusion": "Effusion"}


class FormatError(InputError):
    """A format cannot express a model, with the reason."""


def export_format(model: str, target: str, output: Path) -> Remarks:
    """Write a model folder or repository for "timm" or "torchxrayvision"; return remarks for the user.

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
    card = read_template(Path(__file__).with_name("export_card.md"))
    write = write_timm if target == "timm" else write_torchxrayvision
    with new_folder(output) as folder:
        write_text(folder / "README.md", card.render(target=target, name=folder.name, config=classifier.model.config))
        return write(folder, classifier.model, classifier.processor)


def refuse_model(config: CheXpertConfig, target: str) -> None:
    """Raise FormatError unless the model is a DenseNet121 with one linear output per observation."""
    expected = CheXpertConfig(num_channels=config.num_channels).backbone_fields
    others = [name for name, value in config.backbone_fields.items() if expected.get(name) != value]
    reasons = {
        f"the architecture is no DenseNet121 ({', '.join(others)})": others,
        "its head has a hidden layer": config.head_hidden_size is not None,
        "its probabilities are products along a label hierarchy": config.label_parents,
        "its head has three classes per observation (U-MultiClass)": config.multiclass_observations,
    }
    for reason, applies in reasons.items():
        if applies:
            raise FormatError(f"{target} cannot express this model: {reason}; expected DenseNet121 with a linear head.")


def write_timm(folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor) -> Remarks:
    """Write a folder that `AutoModelForImageClassification` and `pipeline` load through timm, without remote code."""
    settings, state_dict = _timm_settings(processor), _own_tensors(model)
    if model.config.num_channels == 1:
        # Images have three equal channels there; kernels of the first and zeros for the others change no bit.
        name = "features.conv0.weight"
        state_dict[name] = torch.cat([state_dict[name], torch.zeros_like(state_dict[name]).repeat(1, 2, 1, 1)], dim=1)
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
    make_readable(folder / "model.safetensors")
    common = {"architecture": TIMM_ARCHITECTURE, "num_classes": model.config.num_labels}
    config = {
        **common,
        "num_features": model.classifier.in_features,
        "label_names": list(model.config.observations),
        "problem_type": "multi_label_classification",
        "global_pool": "avg",
        "pretrained_cfg": {**common, "first_conv": "features.conv0", "classifier": "classifier", **settings},
    }
    write_json(folder / "config.json", config)
    differs = (
        f"timm cannot resize as {processor.resize_like} does: the network is the same to the last bit, but its pixel "
        "values differ, and so do the scores of files."
    )
    return (differs,) if processor.resize_like else ()


def _timm_settings(processor: CheXpertImageProcessor) -> dict[str, Any]:
    """The settings of timm that prepare images as the processor does."""
    height, width = processor.output_size
    if processor.do_center_crop and not (height == width and processor.size["shortest_edge"]):
        raise FormatError("timm cannot express the image processor: it crops in another way than after shortest_edge.")
    interpolation = {value: name for name, value in TIMM_RESAMPLING.items()}.get(processor.resample)
    if interpolation is None:
        raise FormatError("timm cannot express the image processor: it is not bilinear, bicubic or nearest.")
    return {
        "input_size": [3, height, width],
        "fixed_input_size": False,
        "interpolation": interpolation,
        "crop_pct": height / processor.size["shortest_edge"] if processor.do_center_crop else 1.0,
        "crop_mode": "center" if processor.do_center_crop or processor.do_square_crop else "squash",
        "mean": (list(processor.image_mean) * 3)[:3],
        "std": (list(processor.image_std) * 3)[:3],
    }


def write_torchxrayvision(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor
) -> Remarks:
    """Write `model.pt` for torchxrayvision's own DenseNet; see `export_card.md`."""
    theirs = torchxrayvision_processor()
    for name in ("image_mean", "image_std", "do_rescale", "do_normalize"):
        ours, expected = (np.ravel(getattr(one, name)).tolist() for one in (processor, theirs))
        if ours != expected:
            raise FormatError(
                "torchxrayvision cannot express this model: it feeds one channel in [-1024, 1024], and this model is "
                f"normalised otherwise ({name} is {ours})."
            )
    config, (height, width) = model.config, processor.output_size
    if height != width:
        size = f"{height} x {width} pixels"
        raise FormatError(f"torchxrayvision cannot express this model: it takes squares, not {size}.")
    points = config.operating_points or {}
    thresholds = torch.tensor([points[name] for name in config.observations])
    checkpoint = {
        "state_dict": {**_own_tensors(model), "op_threshs": thresholds},
        "targets": [_TORCHXRAYVISION_NAMES.get(name, name) for name in config.observations],
        "input_resolution": height,
    }
    torch.save(checkpoint, folder / "model.pt")
    if processor.do_square_crop and processor.resize_like:
        return ()
    return ("This model sees the whole radiograph: leave out XRayCenterCrop, which torchxrayvision's examples have.",)


def _own_tensors(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
