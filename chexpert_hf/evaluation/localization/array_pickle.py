"""Pickles of numbers, texts and arrays, read without running anything that is in them.

A pickle is a program that may call any function by name. Here it may call those few only that numpy and torch write
when they pickle an array, and even these are stand-ins: every array is built by the code below, from checked parts.

Source: Python's documentation of pickle, "Restricting globals"; what numpy 1 and 2 and torch write.
"""

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.radiograph import MAX_PIXELS

_MAX_ELEMENTS = 3 * MAX_PIXELS
"""Of an array: a radiograph with three channels."""


class PickleError(InputError):
    """A pickle that is damaged or holds something else; the message is one line."""


def load_arrays(data: bytes) -> Any:
    """Reads a pickle of dictionaries, lists, tuples, numbers, texts, and arrays of numpy or torch.

    Returns:
        The object, with numpy arrays for all arrays.

    Raises:
        PickleError: If it asks for anything else, or is damaged.
    """
    try:
        return _plain(_ArrayUnpickler(io.BytesIO(data)).load())
    except PickleError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way
        reason = str(error).partition("\n")[0]
        raise PickleError(f"the pickle is damaged: {type(error).__name__}: {reason:.200}") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, texts and arrays; every other name is refused before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _BUILDERS[module, name]
        except KeyError:
            raise PickleError(
                f"the pickle asks for {module}.{name}, which could run code; expected numbers, texts and arrays only."
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise PickleError("the pickle refers to data outside of itself; expected numbers, texts and arrays.")


class _Builder:
    """A function that a pickle may call and not change: a plain one takes any attribute from it."""

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *values: Any) -> Any:
        return self._build(*values)

    def __setstate__(self, state: object) -> None:
        raise PickleError("the pickle changes what it was given to build arrays with.")


class _Kind:
    """Stands in for numpy.dtype: numbers only, and of its state only the byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biuf":
            raise PickleError(f"the pickle holds values of type {str(name)!r:.40}; expected numbers.")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray, whose content comes after it, and for the storages and tensors of torch."""

    def __init__(self, values: NDArray) -> None:
        self.values = values

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        self.values = _array(content, kind, shape, "F" if is_fortran else "C").values


def _array(content: bytes | bytearray, kind: _Kind, shape: tuple[int, ...], order: Any) -> _Array:
    return _Array(np.frombuffer(bytes(content), dtype=kind.dtype).reshape(shape, order=order))


def _empty_array(*_: object) -> _Array:
    return _Array(np.zeros(0))


def _number(kind: _Kind, content: bytes) -> float:
    return np.frombuffer(content, dtype=kind.dtype)[0].item()


def _latin(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise PickleError(f"the pickle encodes as {encoding!r:.40}; expected latin1.")
    return text.encode("latin1")


def _storage(content: bytes) -> _Array:
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that typed storages will go; old files have them for ever
        return _Array(torch.empty(0, dtype=storage.dtype).set_(storage.untyped()).numpy())


def _tensor(storage: _Array, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> _Array:
    if np.prod([float(length) for length in size]) > _MAX_ELEMENTS:
        raise PickleError(f"the pickle holds a tensor of {size}; expected at most {_MAX_ELEMENTS:,} elements.")
    # torch checks that the view stays inside the storage; numpy's would not.
    view = torch.as_strided(torch.from_numpy(storage.values), tuple(size), tuple(stride), offset)
    return _Array(view.numpy().copy())


_BUILDERS: dict[tuple[str, str], _Builder] = {
    ("collections", "OrderedDict"): _Builder(OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
    ("torch.storage", "_load_from_bytes"): _Builder(_storage),
    ("torch", "Size"): _Builder(tuple),
    ("_codecs", "encode"): _Builder(_latin),
    ("numpy", "dtype"): _Builder(_Kind),
    ("numpy", "ndarray"): _Builder(_empty_array),
} | {
    (f"{package}.{module}", name): _Builder(build)
    for package in ("numpy.core", "numpy._core")  # before numpy 2, and since
    for module, name, build in (
        ("multiarray", "_reconstruct", _empty_array),
        ("multiarray", "scalar", _number),
        ("numeric", "_frombuffer", _array),
    )
}


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
