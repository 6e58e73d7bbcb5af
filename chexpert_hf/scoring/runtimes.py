"""Choose and open the runtime that computes the scores: PyTorch, ONNX Runtime or OpenVINO.

"auto" is PyTorch on a GPU; on a CPU it is the runtime that was fastest there when timed on first use (`autotune`).
OpenVINO and ONNX Runtime need the model as a graph: one that was exported to the model folder (`chexpert-hf export`),
or one that is converted on first use.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, Precision, RuntimeName, find_graph, fingerprint
from chexpert_hf.scoring import autotune as tuning
from chexpert_hf.scoring.graphs.conversion import converted_graph
from chexpert_hf.scoring.graphs.sessions import (
    SESSIONS,
    Runtime,
    TorchRuntime,
    openvino_has_bf16,
    torch_has_bf16,
)

__all__ = ["Precision", "Runtime", "RuntimeName", "open_runtime"]

_Choice = TypeVar("_Choice", RuntimeName, Precision)

_Open: TypeAlias = Callable[[RuntimeName, Precision], Runtime]

_ON_CPU = (RuntimeName.OPENVINO, RuntimeName.ONNX, RuntimeName.TORCH)

_PRECISIONS = {
    RuntimeName.OPENVINO: {Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8},
    RuntimeName.ONNX: {Precision.FP32, Precision.FP16, Precision.INT8},
    RuntimeName.TORCH: {Precision.FP32, Precision.BF16, Precision.FP16},
}

_TITLES = {RuntimeName.OPENVINO: "OpenVINO", RuntimeName.ONNX: "ONNX Runtime", RuntimeName.TORCH: "PyTorch"}


def open_runtime(
    model: CheXpertForImageClassification,
    *,
    folder: Path | None,
    runtime: str = RuntimeName.AUTO.value,
    precision: str = Precision.AUTO.value,
    device: str | torch.device | None = None,
    input_size: tuple[int, int],
    autotune: bool = True,
) -> Runtime:
    """Open a model in a runtime, whose `reason` says in a line which one was chosen and why.

    Args:
        model: The model. PyTorch uses it without a copy: it is moved to the device.
        folder: The model folder, which may hold exported graphs; None for a model that is in memory only.
        runtime: One of `RuntimeName`. "auto" skips runtimes that are missing or broken, and names them in `reason`.
        precision: One of `Precision`. "auto" on a GPU is bf16 if the GPU has instructions for it, else fp32; for "auto"
            on a CPU see `autotune`. fp16 needs PyTorch on a GPU, or an exported graph; int8 needs an exported graph.
        device: Such as "cpu" or "cuda:1". None is a GPU if there is one and the runtime can use it, else the CPU.
        input_size: (height, width) in pixels of the images to score.
        autotune: What "auto" means on a CPU. If True, runtimes and precisions are timed on first use, and the choice is
            kept in the cache. PyTorch and OpenVINO are timed (without OpenVINO, ONNX Runtime in its place), each in
            fp32 and, if supported, bf16. The fastest is chosen; bf16 must be a tenth faster than fp32. If False,
            OpenVINO is used if it can be opened, else ONNX Runtime, else PyTorch; in bf16 if supported.

    Raises:
        InputError: If the runtime, precision or device does not exist, is not installed, or needs a graph that has not
            been exported.
    """
    wanted, asked = _one_of(RuntimeName, runtime, "runtime"), _one_of(Precision, precision, "precision")
    chosen = _device(device, wanted)
    names = _candidates(wanted, asked, chosen)
    open_one = partial(_open, model, chosen, folder, input_size)
    if autotune and chosen.type == "cpu" and _has_choice(names, asked):
        file = tuning.choice_file(model, input_size, (wanted, asked))
        shape = (model.config.num_channels, *input_size)
        if fastest := _open_fastest(names, asked, open_one, shape, file):
            return fastest
    skipped = []
    for name in names:
        try:
            opened = open_one(name, asked)
        except Exception as error:  # noqa: BLE001 - an optional library may raise anything; the next one is tried
            skipped.append(f"{_TITLES[name]}: {_line(error)}")
        else:
            opened.reason += f". Skipped: {'; '.join(skipped)}." if skipped else "."
            return opened
    raise InputError(f"The model cannot be computed as asked. {'; '.join(skipped)}.")


def _one_of(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(item.value for item in kind)
        raise InputError(f"Unknown {what} {value!r}; expected one of: {expected}.") from None


def _device(device: str | torch.device | None, runtime: RuntimeName) -> torch.device:
    uses_gpu = runtime in (RuntimeName.AUTO, RuntimeName.TORCH)
    if device is None:
        if uses_gpu and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if uses_gpu and torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"There is no device {device!r}; expected cpu, cuda, cuda:1, mps or the like.") from error
    if not uses_gpu and chosen.type != "cpu":
        raise InputError(f"{_TITLES[runtime]} computes on the CPU here, not on {device}; use the runtime torch.")
    return chosen


def _candidates(wanted: RuntimeName, precision: Precision, device: torch.device) -> list[RuntimeName]:
    names = [wanted] if wanted is not RuntimeName.AUTO else _ON_CPU if device.type == "cpu" else [RuntimeName.TORCH]
    able = [name for name in names if precision in _PRECISIONS[name] | {Precision.AUTO}]
    if not able:
        able_to = ", ".join(item.value for item in Precision if item in _PRECISIONS[names[0]])
        raise InputError(f"{_TITLES[names[0]]} does not compute in {precision.value}; expected one of: {able_to}.")
    return able


def _has_choice(names: Sequence[RuntimeName], precision: Precision) -> bool:
    if precision is Precision.AUTO:
        return len(names) > 1 or Precision.BF16 in _PRECISIONS[names[0]]
    return len(names) > 1 and precision in (Precision.FP32, Precision.BF16)


def _open_fastest(
    names: Sequence[RuntimeName], precision: Precision, open_one: _Open, shape: tuple[int, int, int], file: Path
) -> Runtime | None:
    """Open the choice stored in `file`; if that is missing or fails, time the runtimes `names` and open the fastest.

    `precision` is the one that the user asked for, maybe AUTO; `open_one` opens a runtime in one precision; `shape` is
    the shape of the images to time on. The new choice is stored unless an installed runtime could not be opened.
    Returns None if no runtime could be opened.
    """
    if known := tuning.recall(file):
        with suppress(Exception):  # the chosen runtime may have broken since: time those that there are now
            opened = open_one(known.runtime, known.precision)
            opened.reason += known.note()
            return opened
    candidates: dict[tuning.Candidate, Runtime] = {}
    skipped, is_lasting = [], True
    for name in names:
        if name is RuntimeName.ONNX and candidates:
            continue  # as fast as OpenVINO at best, and converting takes a quarter of a minute
        try:
            for each in _precisions_to_time(name, precision):
                candidates[name, each] = open_one(name, each)
        except Exception as error:  # noqa: BLE001 - as in `open_runtime`
            skipped.append(f"{_TITLES[name]}: {_line(error)}")
            is_lasting = is_lasting and isinstance(error.__cause__, ImportError)
    if not candidates:
        return None
    choice = tuning.choose(candidates, shape, skipped)
    if is_lasting:
        tuning.remember(file, choice)
    chosen = candidates[choice.runtime, choice.precision]
    chosen.reason += choice.note()
    return chosen


def _precisions_to_time(name: RuntimeName, precision: Precision) -> Iterator[Precision]:
    """Yield the precisions to time for a runtime: the one asked for; for "auto" fp32 and, if supported, bf16."""
    if precision is not Precision.AUTO:
        yield precision
        return
    yield Precision.FP32
    on_torch = name is RuntimeName.TORCH and torch_has_bf16(torch.device("cpu"))
    if on_torch or (name is RuntimeName.OPENVINO and openvino_has_bf16()):
        yield Precision.BF16


def _open(
    model: CheXpertForImageClassification,
    device: torch.device,
    folder: Path | None,
    input_size: tuple[int, int],
    name: RuntimeName,
    precision: Precision,
) -> Runtime:
    if name is RuntimeName.TORCH:
        return _open_torch(model, precision, device)
    return _open_graph(name, model, precision, folder, input_size)


def _open_torch(model: CheXpertForImageClassification, precision: Precision, device: torch.device) -> Runtime:
    if precision is Precision.AUTO:
        precision = Precision.BF16 if torch_has_bf16(device) else Precision.FP32
    if precision is Precision.FP16 and device.type == "cpu":
        raise InputError("fp16 is for GPUs; on a CPU it is slower than fp32")
    opened = TorchRuntime(model, precision, device)
    opened.reason = f"PyTorch in {precision.value} on {device}"
    return opened


def _open_graph(
    name: RuntimeName,
    model: CheXpertForImageClassification,
    asked: Precision,
    folder: Path | None,
    input_size: tuple[int, int],
) -> Runtime:
    """Open a model's graph in ONNX Runtime or OpenVINO, on the CPU.

    An exported graph in `folder` is used if there is one that works. Otherwise, for fp32 and bf16 only, the graph is
    taken from the cache, or converted now. `asked` is the precision that the user asked for. AUTO becomes bf16 in
    OpenVINO if the CPU supports it, else fp32. Raise GraphError if bf16 was asked for and is not supported, or there is
    no graph and none can be converted.
    """
    precision = asked
    if asked in (Precision.AUTO, Precision.BF16):
        precision = Precision.BF16 if name is RuntimeName.OPENVINO and openvino_has_bf16() else Precision.FP32
        if asked is Precision.BF16 and precision is not asked:
            raise GraphError("this processor does not compute in bf16")
    weights = Precision.FP32 if precision is Precision.BF16 else precision
    key = fingerprint(model)
    start = f"{_TITLES[name]} in {precision.value} on the CPU, with"
    note = ""
    if folder is not None:
        try:
            exported = find_graph(folder, name, weights, key, input_size)
            if exported is not None:
                opened = SESSIONS[name](exported, precision)
                opened.reason = f"{start} the exported {exported.relative_to(folder).as_posix()}"
                return opened
        except Exception as error:  # noqa: BLE001 - a damaged graph makes its runtime raise anything
            note = f" ({_line(error)})"
    if weights is not Precision.FP32:
        command = f"chexpert-hf export --model {folder or 'MODEL'} --runtime {name.value} --precision {weights.value}"
        raise GraphError(f"there is no {weights.value} graph of this model{note}; make one: {command}")
    with converted_graph(model, name, key, input_size) as (path, origin):
        opened = SESSIONS[name](path, precision)
    opened.reason = f"{start} {origin}{note}"
    return opened


def _line(error: Exception) -> str:
    return first_line(error, 1000).rstrip(".")
