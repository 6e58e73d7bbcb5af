"""Reads weights from files that others wrote, safetensors or pickles, without running any code in them.

Pickles are read with `torch.load(weights_only=True)`. Files that hold a whole module, such as torchxrayvision's, name
the classes of its layers; each is replaced by an object that only keeps its state, from which the parameters are taken.
"""

import io
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from chexpert_hf.files import first_line
from chexpert_hf.models.weights import WeightsError, with_current_names

_LAYERS = (
    nn.BatchNorm2d, nn.Conv2d, nn.Linear, nn.Sequential, nn.DataParallel, nn.ReLU, nn.Sigmoid, nn.AdaptiveAvgPool2d,
    nn.AvgPool2d, nn.MaxPool2d, nn.Dropout,
)  # fmt: skip
_DENSENET_MODULES = ("torchxrayvision.models", "torchvision.models.densenet")
_DENSENET_CLASSES = ("DenseNet", "_DenseLayer", "_DenseBlock", "_Transition")
_HARMLESS = (
    *(f"{layer.__module__}.{layer.__name__}" for layer in _LAYERS),
    *(f"{module}.{name}" for module in _DENSENET_MODULES for name in _DENSENET_CLASSES),
    "torch.nn.backends.thnn._get_thnn_function_backend",  # in modules of PyTorch before 1.4
    # Beside the weights in checkpoints of training scripts.
    *("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)
# Keys under which checkpoints keep the weights.
_INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
_PREFIX = re.compile(
    r"^(?:(?:module|model|timm_model|(?:densenet|resnet)\d*|convnext(?:_tiny)?|backbone)\.)+"
    r"(?=(?:features|classifier|head|fc|conv1|bn1|layer[1-4])\.|op_threshs$)"
)
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
_REASON = re.compile(r"WeightsUnpickler error: (.+)")
# Raised by torch's readers for damaged files.
_MALFORMED = (
    pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError,
    MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_CLASS_OF = "chexpert_hf.class_of"  # in rewritten pickles: a function that returns its second argument
_CALL = b"c" + _CLASS_OF.replace(".", "\n").encode() + b"\n"
_PICKLES_IN_FRONT = 3  # before an object in files of PyTorch before 1.6: magic number, format version, machine
_NUM_CLASS_VALUES = 4  # "module", the class, its file and its source code


class _Inert:
    """A placeholder that is created in place of an object in a pickle: it keeps the object's state and does nothing."""

    dump_patches = False  # read by torch
    state: Any = None

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class WeightFile(NamedTuple):
    """The content of a file of weights."""

    tensors: Mapping[str, Tensor]  # by name, without the prefixes of wrappers, such as `module.`
    rest: Mapping[str, Any]  # what else a checkpoint holds, such as `epoch`; empty for weights alone


def read_weight_file(path: Path) -> WeightFile:
    """Read weights without running code; raise WeightsError for a damaged file, no weights, or unsafe objects."""
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; expected weights as .safetensors, .pth, .pt or .tar.")
    if path.suffix == ".safetensors":
        try:
            file = WeightFile(load_file(path), {})
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is no safetensors file, or a damaged one ({error}); copy it again.") from error
    else:
        file = _split(_read_pickle(path), path)
    named = {_PREFIX.sub("", name): tensor for name, tensor in file.tensors.items()}
    if len(named) < len(file.tensors):
        raise WeightsError(f"{path} holds several networks; expected one.")
    return WeightFile(with_current_names(named), file.rest)


def _read_pickle(path: Path) -> Any:
    allowed: list[Any] = [(lambda *values: values[1], _CLASS_OF), *((_Inert, name) for name in _HARMLESS)]
    try:
        content = path.read_bytes()
        if not content.startswith(b"PK"):  # not the ZIP archive that PyTorch writes since 1.6
            content = without_persistent_classes(content)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing source code of pickled classes
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _MALFORMED as error:
        if forbidden := _FORBIDDEN.search(str(error)):
            raise WeightsError(
                f"{path} holds {forbidden[1]}, which is no weights; nothing was run. Where the file was made, save the "
                "weights alone: torch.save(model.state_dict(), FILE)."
            ) from error
        reason = _REASON.search(str(error))
        line = reason[1] if reason else first_line(error)
        if line.startswith("Weights only load failed"):  # an explanation of weights_only follows
            line = "not PyTorch's format"
        raise WeightsError(
            f"{path} is no file of weights, or a damaged one ({line[:100]}); expected safetensors, or what torch.save "
            "writes of a state_dict."
        ) from error


def without_persistent_classes(content: bytes) -> bytes:
    """Rewrite a file in the format of PyTorch before 1.6, so that `torch.load(weights_only=True)` can read it.

    Such a file holds the class of each module, with its source code, as a "persistent id" of pickle
    (`pickle.Pickler.persistent_id`). `weights_only` refuses these ids. This function parses the pickle without running
    it, and replaces the instruction that loads such an id by a call of `_CLASS_OF`, which only returns the class.
    Nothing else changes, so `weights_only` still checks everything that the file names. Raises ValueError for files of
    other formats. Source: torch 1.5, `serialization._legacy_save`.
    """
    stream = io.BytesIO(content)
    for _ in range(_PICKLES_IN_FRONT):
        for _ in pickletools.genops(stream):
            pass
    done = mark = stream.tell()
    pieces, num_values = [content[:done]], 0
    for code, _, position in list(pickletools.genops(stream)):
        place = position or 0
        if code.name == "MARK":
            mark, num_values = place, 0
        elif code.name == "BINPERSID" and num_values == _NUM_CLASS_VALUES:
            pieces += [content[done:mark], _CALL, content[mark:place], pickle.REDUCE]
            done = place + 1
        elif code.name != "TUPLE" and not code.name.endswith("PUT"):
            num_values += 1
    return b"".join([*pieces, content[done:]])


def _split(content: Any, path: Path) -> WeightFile:
    """Split a checkpoint into its weights and the rest; raise WeightsError if it has no weights.

    `content` is either the weights themselves, or a mapping that holds them under a key such as "state_dict".
    """
    places: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    if tensors := _tensors_of(content, path):
        return WeightFile(tensors, {})
    for place in _INSIDE:
        if tensors := _tensors_of(places.get(place), path):
            return WeightFile(tensors, {str(name): value for name, value in places.items() if name != place})
    raise WeightsError(f"{path} holds no weights; expected a state_dict, alone or under one of: {', '.join(_INSIDE)}.")


def _tensors_of(value: Any, path: Path) -> dict[str, Tensor]:
    """Return name -> tensor of a state dict, or of a pickled module; empty if `value` is neither.

    A pickled module is read without its code, as an `_Inert`, which only holds the module's state. Raises WeightsError,
    with `path` in its message, if the state is not that of a PyTorch module.
    """
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
