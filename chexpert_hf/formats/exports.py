"""Exports models to timm (and so to transformers without remote code) and to torchxrayvision."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from chexpert_hf.configuration_chexpert import DENSENET, NETWORKS, CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.files import make_readable, new_folder, require_empty, write_json, write_text
from chexpert_hf.formats.imports import TIMM_ARCHITECTURES, TIMM_RESAMPLING, read_source
from chexpert_hf.formats.torchxrayvision_models import processor as torchxrayvision_processor
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import Precision
from chexpert_hf.publishing.card import read_template
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.graphs.conversion import BOUNDS
from chexpert_hf.scoring.graphs.export import phantoms

Remarks = tuple[str, ...]

_COMPARED_PHANTOMS, _COMPARED_SEED = 6, 9_000
_TORCHXRAYVISION_NAMES = {"Pleural Effusion": "Effusion"}


class FormatError(InputError):
    """A model that cannot be expressed in the format of the export; the message says why."""


def export_format(model: str, target: str, output: Path) -> Remarks:
    """Write a model and a card for the library `target`, "timm" or "torchxrayvision"; return remarks for the user.

    `model` is a model folder or the id of a repository on the Hub. `output`, a new or empty folder, is written whole or
    not at all.

    Raises:
        FormatError: If the format cannot express the model, or the written model gives other scores.
        FolderError: If `output` is not new or empty, or cannot be written.
        ModelFolderError: If the model cannot be loaded.
    """
    require_empty(output)
    classifier = CheXpertClassifier.from_pretrained(model, device="cpu")
    if len(classifier.members) > 1:
        raise FormatError(f"{target} cannot express an ensemble; export its members one by one.")
    refuse_model(classifier.model.config, target)
    refuse_processor(classifier.processor, target)
    card = read_template(Path(__file__).with_name("export_card.md"))
    write = write_timm if target == "timm" else write_torchxrayvision
    with new_folder(output) as folder:
        remarks = write(folder, classifier.model, classifier.processor)
        values = {"target": target, "name": folder.name, "config": classifier.model.config, "remarks": remarks}
        write_text(folder / "README.md", card.render(values))
        return remarks


def refuse_model(config: CheXpertConfig, target: str) -> None:
    """Raise FormatError if `target`, "timm" or "torchxrayvision", cannot express the network.

    Neither can express a hidden layer in the head, U-MultiClass, a label hierarchy, or most backbones.
    """
    supported = TIMM_ARCHITECTURES if target == "timm" else TIMM_ARCHITECTURES[:1]
    titles = " or ".join(NETWORKS[network] for network in supported)
    reasons = {
        f"its backbone is {config.network}": config.network not in supported,
        "its head has a hidden layer": config.head_hidden_size is not None,
        "its probabilities are products along a label hierarchy": config.label_parents,
        "its head has three classes per observation (U-MultiClass)": config.multiclass_observations,
    }
    for reason, applies in reasons.items():
        if applies:
            raise FormatError(f"{target} cannot express this model: {reason}; expected {titles} with a linear head.")


def refuse_processor(processor: CheXpertImageProcessor, target: str) -> None:
    """Raise FormatError if the processor normalises gray levels by `gray_range`, which `target` does not do."""
    if processor.gray_range:
        raise FormatError(
            f"{target} cannot express this model: it would omit gray_range, by which the gray levels of each image are "
            "normalised, and give other scores; --runtime onnx and openvino write folders that keep it."
        )


def write_timm(folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor) -> Remarks:
    """Write a folder that `AutoModelForImageClassification` and `pipeline` load through timm, without remote code.

    As a test, the written folder scores phantoms, and its probabilities must be those of `model`. They may differ only
    if the processor resizes like scikit-image (`resize_like`), which timm cannot do. The returned remark then says by
    how much they differ.

    Raises:
        FormatError: If the probabilities differ for another reason, or timm cannot crop or interpolate as the processor
            does.
    """
    settings = _timm_settings(processor)
    state_dict = {_timm_name(name, model.config): tensor for name, tensor in _own_tensors(model).items()}
    first, head = (
        _timm_name(name, model.config) for name in (f"features.{model.features.first_convolution[0]}", "classifier")
    )
    if model.config.num_channels == 1:
        # timm feeds three equal channels; with zeros as kernels of the second and third, no bit changes.
        name = f"{first}.weight"
        state_dict[name] = torch.cat([state_dict[name], torch.zeros_like(state_dict[name]).repeat(1, 2, 1, 1)], dim=1)
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
    make_readable(folder / "model.safetensors")
    common = {"architecture": model.config.network, "num_classes": model.config.num_labels}
    config = {
        **common,
        "num_features": model.classifier.in_features,
        "label_names": list(model.config.observations),
        "problem_type": "multi_label_classification",
        "global_pool": "avg",
        "pretrained_cfg": {**common, "first_conv": first, "classifier": head, **settings},
    }
    write_json(folder / "config.json", config)
    difference = _largest_difference(folder, model, processor)
    if processor.resize_like:
        return (
            f"timm cannot resize as {processor.resize_like} does: the network is the same, but its pixel "
            f"values differ, and so do the scores of files, by up to {difference:.2g} on synthetic radiographs.",
        )
    if difference > BOUNDS[Precision.FP32]:
        raise FormatError(
            f"timm cannot express the image processor: probabilities differ by up to {difference:.2g} on synthetic "
            f"radiographs, expected at most {BOUNDS[Precision.FP32]:g}."
        )
    return ()


@torch.inference_mode()
def _largest_difference(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor
) -> float:
    """Return the largest difference, on phantoms, between probabilities of the written timm folder and of the model."""
    written = read_source(f"timm:{folder}", labels=[str(row) for row in range(model.config.num_labels)])
    images = phantoms(_COMPARED_PHANTOMS, seed=_COMPARED_SEED)
    pairs = ((written.build(), written.processor), (model, processor))
    theirs, ours = (
        network(prepare(images, return_tensors="pt")["pixel_values"]).logits.sigmoid() for network, prepare in pairs
    )
    return float((theirs - ours).abs().max())


def _timm_settings(processor: CheXpertImageProcessor) -> dict[str, Any]:
    """Return the fields of timm's `pretrained_cfg` that prepare images as the processor does.

    Raises FormatError if timm cannot crop or interpolate as the processor does.
    """
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
    """Write `model.pt`, from which torchxrayvision's DenseNet is built as `export_card.md` shows.

    Returns remarks for the user. Raises FormatError unless the processor makes square images with one channel in
    [-1024, 1024].
    """
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
    return tuple(_differences(processor))


def _differences(processor: CheXpertImageProcessor) -> Iterator[str]:
    """Yield a remark for each way in which `processor` crops or resizes unlike torchxrayvision's examples."""
    if processor.do_center_crop:
        middle = f"the middle {processor.crop_size['height']} x {processor.crop_size['width']} pixels after resizing"
        yield f"This model takes {middle}: do so instead of XRayCenterCrop, which torchxrayvision's examples have."
    elif not processor.do_square_crop:
        yield "This model sees the whole radiograph: leave out XRayCenterCrop, which torchxrayvision's examples have."
    if not processor.resize_like:
        yield "XRayResizer resizes in another way, so that pixel values and the scores of files differ slightly."


def _timm_name(name: str, config: CheXpertConfig) -> str:
    """Return timm's name of a weight or layer of this package, such as `fc` for the `classifier` of a ResNet."""
    if config.backbone == DENSENET:
        return name
    return re.sub("^classifier", "fc", name.removeprefix("features."))


def _own_tensors(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
