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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chexpert_hf.files import first_line
from chexpert_hf.formats.old_pickles import CLASS_OF, without_persistent_classes
from chexpert_hf.models.weights import WeightsError, with_todays_names

_WITHOUT_WEIGHTS = (nn.ReLU, nn.Sigmoid, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Dropout)
_LAYERS = (nn.BatchNorm2d, nn.Conv2d, nn.Linear, nn.Sequential, nn.DataParallel, *_WITHOUT_WEIGHTS)
_HARMLESS = (
    *(f"{layer.__module__}.{layer.__name__}" for layer in _LAYERS),
    *(
        f"{module}.{name}"
        for module in ("torchxrayvision.models", "torchvision.models.densenet")
        for name in ("DenseNet", "_DenseLayer", "_DenseBlock", "_Transition")
    ),
    "torch.nn.backends.thnn._get_thnn_function_backend",  # in modules of PyTorch before 1.4
    # Beside the weights in checkpoints of training scripts.
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
# Raised by torch's readers for damaged files.
_MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
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
    """The contents of a file.

    Attributes:
        tensors: By torchvision's names of DenseNet: `features.*` and `classifier.*`, without prefixes of wrappers.
        beside: The rest of a checkpoint.
    """

    tensors: Mapping[str, Tensor]
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_weight_file(path: Path) -> WeightFile:
    """Reads weights; nothing in the file is run.

    Raises:
        WeightsError: If there is no such file, it holds no weights, or more than weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; expected weights as .safetensors, .pth, .pt or .tar.")
    file = _read_safetensors(path) if path.suffix == ".safetensors" else _split(_read_pickle(path), path)
    named = {_PREFIX.sub("", name): tensor for name, tensor in file.tensors.items()}
    if len(named) < len(file.tensors):
        raise WeightsError(f"{path} holds several networks; expected one.")
    return WeightFile(with_todays_names(named), file.beside)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        return WeightFile(load_file(path))
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
        if forbidden := _FORBIDDEN.search(str(error)):
            raise WeightsError(
                f"{path} holds {forbidden[1]}, which is no weights; nothing was run. Where the file was made, save the "
                "weights alone: torch.save(model.state_dict(), FILE)."
            ) from error
        reason = _REASON.search(str(error))
        line = reason[1] if reason else first_line(error, limit=100)
        if not reason and line.startswith("Weights only load failed"):  # an explanation of weights_only follows
            line = "not PyTorch's format"
        raise WeightsError(
            f"{path} is no file of weights, or a damaged one ({line[:100]}); expected safetensors, or what torch.save "
            "writes of a state_dict."
        ) from error


def _split(content: Any, path: Path) -> WeightFile:
    """The tensors of a checkpoint, wherever it keeps them, and the rest."""
    places: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    if tensors := _tensors_of(content, path):
        return WeightFile(tensors)
    for place in _INSIDE:
        if tensors := _tensors_of(places.get(place), path):
            return WeightFile(tensors, {str(name): value for name, value in places.items() if name != place})
    raise WeightsError(f"{path} holds no weights; expected a state_dict, alone or under one of: {', '.join(_INSIDE)}.")


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
    for name, tensor in (*module.state["_parameters"].items(), *module.state["_buffers"].items()):
        if isinstance(tensor, Tensor):
            yield prefix + name, tensor.detach()
    for name, child in module.state["_modules"].items():
        if isinstance(child, _Inert):
            yield from _parameters(child, f"{prefix}{name}.")
