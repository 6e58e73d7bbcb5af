"""Checks that a model folder is as it was saved, and gives the same scores in every installed runtime."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chexpert_hf
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line, sha256_of
from chexpert_hf.models import model_files
from chexpert_hf.models.graph_files import GRAPH_FILES, Precision, RuntimeName, hashes, read_records
from chexpert_hf.models.model_files import CHECKSUMS_FILE, CODE_FILES, ENSEMBLE_FILE, RUN_FOLDERS
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.card import card_problems
from chexpert_hf.publishing.model_folder import CARD_FILE, REFERENCE_FILE, image_sha256
from chexpert_hf.scoring.classifier import CheXpertClassifier

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
PACKAGES = {RuntimeName.TORCH: "torch", RuntimeName.ONNX: "onnxruntime", RuntimeName.OPENVINO: "openvino"}
"""The package of each runtime whose scores are checked."""

# Largest difference of a probability from `reference.json`, by the precision of the computation.
_BOUNDS = {Precision.FP32: 1e-4, Precision.FP16: 0.01, Precision.INT8: 0.03}
# Not OpenVINO's `.bin`: exported graphs are known files of a model folder.
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".bin", ".h5")
_DANGEROUS = {
    _PICKLES: "may run code when read, and belongs to no model folder",
    (".py", ".so"): "code that belongs to no model folder",
}


@dataclass(frozen=True)
class CheckLine:
    """The result of one check of a model folder."""

    subject: str  # such as "checksums"
    result: str  # "ok", "FAILED", or "skipped" for a runtime that does not support this model
    text: str  # the details, or why the check failed or was skipped


@dataclass(frozen=True)
class CheckReport:
    """The results of all checks of a model folder, in their order."""

    folder: str
    lines: list[CheckLine]

    @property
    def is_ok(self) -> bool:
        """Whether no check failed."""
        return all(line.result != FAILED for line in self.lines)

    def as_table(self) -> str:
        """Format one aligned line per check."""
        width = max(len(line.subject) for line in self.lines)
        return "\n".join(f"{line.subject:<{width}}  {line.result:<8}  {line.text}" for line in self.lines)


class _SkippedError(Exception):
    """A runtime that does not support this model; the message says why in one line."""


class _OtherPhantomError(InputError):
    """This version of the package draws the phantom of `reference.json` differently, so scores cannot be compared."""


def check_folder(folder: Path) -> CheckReport:
    """Check a model folder's files, checksums, code, card, exported graphs, weights and reference scores.

    An ensemble's members have no card or reference scores: their files, checksums, code and weights are checked.
    Failures are lines of the report, not errors.

    Raises:
        InputError: If `folder` is neither a model folder nor an ensemble, or `ensemble.json` is damaged.
    """
    lines = []
    for subject, check in _checks(folder).items():
        try:
            lines.append(CheckLine(subject, OK, check()))
        except _SkippedError as reason:
            lines.append(CheckLine(subject, SKIPPED, str(reason)))
        except Exception as error:  # noqa: BLE001 - a damaged file can make a library raise anything
            lines.append(CheckLine(subject, FAILED, first_line(error, limit=5000)))
    return CheckReport(str(folder), lines)


def expect_own_scores(folder: Path) -> None:
    """Raise InputError if a model's scores of the phantom in `reference.json` are not those recorded there.

    This finds weights that were saved to the folder later, with new checksums but an old card. If this version of the
    package draws the phantom differently, nothing is compared.
    """
    try:
        _scores(folder, runtime=RuntimeName.TORCH, precision=Precision.FP32)
    except _OtherPhantomError:
        return


def _checks(folder: Path) -> dict[str, Callable[[], str]]:
    """Return the checks of a folder, as subject -> function; InputError if it is neither model folder nor ensemble.

    A function returns the details if its check passes. It raises `_SkippedError` if a runtime does not support the
    model, and any other error if the check fails.
    """
    if (folder / ENSEMBLE_FILE).is_file():
        parts = {"files": _no_pickle, "checksums": _hashes, "code": _code, "model": _model}
        members = [Path(member) for member in model_files.ensemble_members(folder)]
        return {
            f"{os.path.relpath(one, folder)}, {name}": partial(check, one)
            for one in members
            for name, check in parts.items()
        }
    if not (folder / "config.json").is_file():
        raise model_files.no_model(folder, folder)
    checks = {"files": _files, "checksums": _hashes, "code": _code, "card": _card, "graphs": _graphs, "model": _model}
    for runtime, package in PACKAGES.items():
        for precision in _BOUNDS if importlib.util.find_spec(package) else ():
            if precision is Precision.FP32 or _graph(folder, runtime, precision):
                name = f"scores, {runtime.value} {precision.value}"
                checks[name] = partial(_scores, runtime=runtime, precision=precision)
    return {name: partial(check, folder) for name, check in checks.items()}


def _files(folder: Path) -> str:
    if missing := model_files.missing_files(folder):
        raise InputError(f"{', '.join(missing)} missing")
    return _no_pickle(folder)


def _no_pickle(folder: Path) -> str:
    known = model_files.checksummed_files(folder)
    unknown = [
        path.as_posix()
        for path in (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        if path.as_posix() not in (*known, CHECKSUMS_FILE)
        and path.parts[0] not in RUN_FOLDERS
        and not any(part.startswith((".", "run-", "__pycache__")) for part in path.parts)
    ]
    for suffixes, problem in _DANGEROUS.items():
        if dangerous := [name for name in unknown if name.endswith(suffixes)]:
            raise InputError(f"{', '.join(dangerous[:3])}: {problem}")
    beside = f"; {', '.join(unknown[:3])} {'is' if len(unknown) == 1 else 'are'} no part of it" if unknown else ""
    return f"{len(known)} files, no pickle{beside}"


def _hashes(folder: Path) -> str:
    checksums = model_files.read_checksums(folder)
    if checksums is None:
        raise InputError(f"there is no {CHECKSUMS_FILE}, so changes cannot be found; --accept writes it")
    if found := model_files.differences(folder):
        raise InputError("; ".join(found))
    return f"{len(checksums)} files are as they were saved"


def _code(folder: Path) -> str:
    home, version = Path(chexpert_hf.__file__).parent, f"chexpert-hf {chexpert_hf.__version__}"
    names = [name for name in CODE_FILES if (folder / name).is_file() or name in model_files.missing_files(folder)]
    if different := ", ".join(name for name in names if _text(folder / name) != _text(home / name)):
        return f"{different} of another version than {version}; loading the folder as remote code runs it"
    return f"its {len(CODE_FILES)} files are those of {version}"


def _card(folder: Path) -> str:
    text = _text(folder / CARD_FILE)
    if problems := card_problems(text):
        raise InputError("; ".join(problems[:5]))
    return f"complete, {len(text.splitlines())} lines"


def _graphs(folder: Path) -> str:
    records = read_records(folder)
    files = {path.relative_to(folder).as_posix() for name in ("onnx", "openvino") for path in (folder / name).glob("*")}
    if unknown := files - {name for record in records.values() for name in record.sha256}:
        raise InputError(f"{', '.join(sorted(unknown))} not in export.json, so its origin is unknown")
    for name, record in records.items():
        if wrong := [file for file, value in hashes(folder, record.sha256).items() if value != record.sha256[file]]:
            raise InputError(f"{', '.join(wrong)} missing or not as exported")
        if record.weights_sha256 != sha256_of(folder / "model.safetensors"):
            raise InputError(f"{name} was made from other weights")
    return f"{len(records)} exported: {', '.join(records)}" if records else "none exported"


def _model(folder: Path) -> str:
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    num_observations, gate = len(classifier.observations), "with a gate" if classifier.has_gate else "without a gate"
    if wrong := [name for name, tensor in classifier.model.state_dict().items() if not tensor.isfinite().all()]:
        raise InputError(f"{wrong[0]} holds values that are not finite")
    size = sum(parameter.numel() for parameter in classifier.model.parameters())
    return f"config, processor and weights load: {num_observations} observations, {size:,} parameters, {gate}"


def _scores(folder: Path, *, runtime: RuntimeName, precision: Precision) -> str:
    image, expected = _reference(folder)
    graph, bound = _graph(folder, runtime, precision), _BOUNDS[precision]
    try:
        classifier = CheXpertClassifier.from_pretrained(
            folder, runtime=runtime.value, precision=precision.value, device="cpu"
        )
    except InputError as error:
        if runtime is RuntimeName.TORCH or graph:
            raise
        raise _SkippedError(first_line(error)) from error
    if graph and graph not in classifier.runtime.reason.partition("(")[0]:
        raise InputError(f"the exported {graph} cannot be used: {classifier.runtime.reason}")
    found = classifier.predict(image).probabilities
    if found.keys() != expected.keys():
        raise InputError(f"{REFERENCE_FILE} has scores of other observations than the model")
    worst = max(found, key=lambda name: abs(found[name] - expected[name]))
    difference = abs(found[worst] - expected[worst])
    if not difference <= bound:
        saved = f"{expected[worst]:.4f} when it was saved ({bound:g} allowed)"
        raise InputError(f"{worst} scores {found[worst]:.4f}, and {saved}")
    return f"within {difference:.1g} of {REFERENCE_FILE} (allowed {bound:g})"


def _graph(folder: Path, runtime: RuntimeName, precision: Precision) -> str | None:
    """Return the exported graph for a runtime and precision, as a path relative to the folder; None if missing."""
    graph = GRAPH_FILES.get((runtime, precision))
    return graph if graph is not None and (folder / graph).is_file() else None


def _reference(folder: Path) -> tuple[Any, dict[str, float]]:
    """Render the phantom that `reference.json` describes; return its image, and observation -> recorded probability.

    Raises InputError if the file is damaged, or this version of the package draws the phantom differently.
    """
    try:
        content = json.loads((folder / REFERENCE_FILE).read_text(encoding="utf-8"))
        image = render_phantom(**content["phantom"]).image
        expected = {str(name): float(value) for name, value in content["probabilities"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{REFERENCE_FILE} is missing or damaged") from error
    if image_sha256(image) != content.get("image_sha256", image_sha256(image)):
        raise _OtherPhantomError(
            f"chexpert-hf {chexpert_hf.__version__} draws the phantom of {REFERENCE_FILE} differently from the version "
            "that saved it, so its scores say nothing here"
        )
    return image, expected


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path.name} is missing")
    return path.read_text(encoding="utf-8", errors="replace")
