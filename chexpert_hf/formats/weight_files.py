"""Weights from a file that others wrote: safetensors, or a pickle of which nothing is run.

Pickles are read with `torch.load(weights_only=True)`. Files that hold a whole module, as torchxrayvision's do, name the
classes of its layers; each of these names stands here for an object that keeps what it is given and does nothing, and
the parameters are taken out of it.
"""

import io
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from chexpert_hf.formats.old_pickles import CLASS_OF, without_persistent_classes
from chexpert_hf.models.weights import WeightsError, with_todays_names

_DENSENET_CLASSES = ("DenseNet", "_DenseLayer", "_DenseBlock", "_Transition")
_HARMLESS = (
    *(f"torchxrayvision.models.{name}" for name in _DENSENET_CLASSES),
    *(f"torchvision.models.densenet.{name}" for name in _DENSENET_CLASSES),
    *(
        f"torch.nn.modules.{name}"
        for name in (
            "activation.ReLU",
            "activation.Sigmoid",
            "batchnorm.BatchNorm2d",
            "container.Sequential",
            "conv.Conv2d",
            "dropout.Dropout",
            "linear.Linear",
            "pooling.AdaptiveAvgPool2d",
            "pooling.AvgPool2d",
            "pooling.MaxPool2d",
        )
    ),
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.backends.thnn._get_thnn_function_backend",  # in modules of PyTorch before 1.4
    # What training scripts leave beside the weights.
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# Where checkpoints keep the weights.
_INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
_PREFIX = re.compile(
    r"^(?:(?:module|model|timm_model|densenet121|densenet|backbone)\.)+(?=features\.|classifier\.|op_threshs$)"
)
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
_REASON = re.compile(r"WeightsUnpickler error: (.+)")
# What damaged files have been seen to raise in torch's readers.
_MALFORMED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    MemoryError,
    OverflowError,
    struct.error,
)


class _Inert:
    """Stands for whatever a pickle names: keeps its state, does nothing."""

    dump_patches = False  # torch asks

    state: Any = None

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _class_of(*values: Any) -> Any:
    _, named, _, _ = values  # "module", the class, its file and its source code
    return named


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        tensors: By torchvision's names of DenseNet: `features.*` and `classifier.*`, without prefixes of wrappers.
        beside: What else is in the checkpoint.
    """

    tensors: Mapping[str, Tensor]
    beside: Mapping[str, Any]


def read_weight_file(path: Path) -> WeightFile:
    """Reads weights; what is in the file is not run.

    Raises:
        WeightsError: If there is no such file, it holds no weights, or more than weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; expected weights as .safetensors, .pth, .pt or .tar.")
    beside: Mapping[str, Any] = {}
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors, beside = _split(_read_pickle(path), path)
    named = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise WeightsError(f"{path} holds several networks; expected one.")
    return WeightFile(with_todays_names(named), beside)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no safetensors file, or a damaged one ({error}); copy it again.") from error


def _read_pickle(path: Path) -> Any:
    allowed: list[Any] = [(_class_of, CLASS_OF), *((_Inert, name) for name in _HARMLESS)]
    try:
        content = path.read_bytes()
        if not content.startswith(b"PK"):  # not the ZIP archive that PyTorch writes since 1.6
            content = without_persistent_classes(content)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the source code of classes that are not there
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _MALFORMED as error:
        found = _FORBIDDEN.search(str(error))
        if found:
            raise WeightsError(
                f"{path} holds {found[1]}, which is no weights; nothing was run. Where the file was made, save the "
                "weights alone: torch.save(model.state_dict(), FILE)."
            ) from error
        raise WeightsError(
            f"{path} is no file of weights, or a damaged one ({_first_line(error)}); expected safetensors, or what "
            "torch.save writes of a state_dict."
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    found = _REASON.search(text)
    if found is None and text.startswith("Weights only load failed"):  # an explanation of weights_only follows
        return "not PyTorch's format"
    return (found[1] if found else text).splitlines()[0][:100]


def _split(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, wherever it keeps them, and the rest."""
    if isinstance(content, Mapping) and not _tensors_of(content, path):
        place = next((name for name in _INSIDE if _tensors_of(content.get(name), path)), None)
        if place is not None:
            beside = {str(name): value for name, value in content.items() if name != place}
            return _tensors_of(content[place], path), beside
    tensors = _tensors_of(content, path)
    if not tensors:
        raise WeightsError(
            f"{path} holds no weights; expected a state_dict, alone or under one of: {', '.join(_INSIDE)}."
        )
    return tensors, {}


def _tensors_of(value: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict or a module; none if it is neither."""
    if isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in value.values()):
        return {str(name): tensor.detach() for name, tensor in value.items()}
    if not isinstance(value, _Inert) or not isinstance(value.state, Mapping):
        return {}
    try:
        return dict(_parameters(value))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} holds a module that cannot be taken apart; save its state_dict instead.") from error


def _parameters(module: _Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state[kind].items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor.detach()
    for name, child in module.state["_modules"].items():
        if isinstance(child, _Inert):
            yield from _parameters(child, f"{prefix}{name}.")
