"""Whether a model folder is what it was when it was saved, and computes here what it computed there."""

from collections.abc import Callable
from pathlib import Path

import chexpert_hf
from chexpert_hf.errors import InputError
from chexpert_hf.models.ensembles import ENSEMBLE_FILE
from chexpert_hf.models.graph_files import hashes, read_records
from chexpert_hf.models.model_files import (
    CHECKSUMS_FILE,
    CODE_FILES,
    differences,
    missing_files,
    read_checksums,
    summed_files,
)
from chexpert_hf.publishing.card_check import card_problems
from chexpert_hf.publishing.check_report import (
    FAILED,
    LEFT_OUT,
    OK,
    CheckLine,
    CheckReport,
    FailedCheckError,
    LeftOutError,
)
from chexpert_hf.publishing.check_scores import score_checks
from chexpert_hf.publishing.model_folder import CARD_FILE
from chexpert_hf.scoring.classifier import CheXpertClassifier

PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".bin", ".h5")
"""What may run code when it is read; OpenVINO's `.bin` in `openvino/` holds numbers only."""

OWN_FOLDERS = ("checkpoints", "members", "teacher", "conditional", "folds", "logs")
"""What a run leaves below its model folder, which is no part of the model."""


def check_folder(folder: Path) -> CheckReport:
    """Looks at everything that can be wrong with a model folder.

    Args:
        folder: The model folder.

    Raises:
        InputError: If it is no model folder at all.
    """
    if (folder / ENSEMBLE_FILE).is_file():
        raise InputError(f"{folder} is an ensemble; check the model folders that it was made of, such as run-1.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; expected a model folder.")
    checks: list[tuple[str, Callable[[Path], str]]] = [
        ("files", _check_files),
        ("checksums", _check_sums),
        ("code", _check_code),
        ("card", _check_card),
        ("graphs", _check_graphs),
        ("model", _check_model),
    ]
    checks += [(f"scores, {subject}", check) for subject, check in score_checks(folder)]
    return CheckReport(str(folder), [_line(subject, check, folder) for subject, check in checks])


def _line(subject: str, check: Callable[[Path], str], folder: Path) -> CheckLine:
    try:
        return CheckLine(subject, OK, check(folder))
    except LeftOutError as reason:
        return CheckLine(subject, LEFT_OUT, str(reason))
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes a library raise is what is looked for
        text = str(error).strip().splitlines()
        return CheckLine(subject, FAILED, text[0] if text else type(error).__name__)


def _check_files(folder: Path) -> str:
    if missing := missing_files(folder):
        raise FailedCheckError(f"{', '.join(missing)} missing")
    if dangerous := [name for name in _others(folder) if Path(name).suffix in PICKLE_SUFFIXES]:
        raise FailedCheckError(f"{', '.join(dangerous[:3])}: may run code when read, and belongs to no model folder")
    if code := [name for name in _others(folder) if Path(name).suffix in (".py", ".so")]:
        raise FailedCheckError(f"{', '.join(code[:3])}: code that belongs to no model folder")
    known, unknown = summed_files(folder), _others(folder)
    beside = f"; {', '.join(unknown[:3])} {'is' if len(unknown) == 1 else 'are'} no part of it" if unknown else ""
    return f"{len(known)} files, no pickle{beside}"


def _others(folder: Path) -> list[str]:
    """What is in the folder and in no list of a model folder's files; but for a run's own folders and hidden files."""
    known = {*summed_files(folder), CHECKSUMS_FILE}
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path.as_posix()
        for path in paths
        if path.as_posix() not in known
        and path.parts[0] not in OWN_FOLDERS
        and not any(part.startswith((".", "run-", "__pycache__")) for part in path.parts)
    ]


def _check_sums(folder: Path) -> str:
    sums = read_checksums(folder)
    if sums is None:
        raise FailedCheckError(
            f"there is no {CHECKSUMS_FILE}: nobody can tell whether a file was changed; --accept writes it"
        )
    if found := differences(folder):
        raise FailedCheckError("; ".join(found))
    return f"{len(sums)} files are as they were saved"


def _check_code(folder: Path) -> str:
    home = Path(chexpert_hf.__file__).parent
    different = [name for name in CODE_FILES if _text(folder / name) != _text(home / name)]
    if not different:
        return f"the four files are those of chexpert-hf {chexpert_hf.__version__}"
    return (
        f"{', '.join(different)} of another version than chexpert-hf {chexpert_hf.__version__}; others who load the "
        "folder as remote code run that version"
    )


def _check_card(folder: Path) -> str:
    text = _text(folder / CARD_FILE)
    if problems := card_problems(text):
        raise FailedCheckError("; ".join(problems[:5]))
    return f"complete, {len(text.splitlines())} lines"


def _check_graphs(folder: Path) -> str:
    records = read_records(folder)
    files = {path.relative_to(folder).as_posix() for name in ("onnx", "openvino") for path in (folder / name).glob("*")}
    if unknown := files - {name for record in records.values() for name in record.sha256}:
        raise FailedCheckError(
            f"{', '.join(sorted(unknown))} not in export.json, so nobody knows what it was made from"
        )
    for name, record in records.items():
        wrong = [file for file, value in hashes(folder, record.sha256).items() if value != record.sha256[file]]
        if wrong:
            raise FailedCheckError(f"{', '.join(wrong)} missing or not as exported")
        if record.weights_sha256 != hashes(folder, ["model.safetensors"])["model.safetensors"]:
            raise FailedCheckError(f"{name} was made from other weights")
    return f"{len(records)} exported: {', '.join(records)}" if records else "none exported"


def _check_model(folder: Path) -> str:
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    if wrong := [name for name, tensor in classifier.model.state_dict().items() if not tensor.isfinite().all()]:
        raise FailedCheckError(f"{wrong[0]} holds values that are not finite")
    size = sum(parameter.numel() for parameter in classifier.model.parameters())
    gate = "with a gate" if (folder / "gate.safetensors").is_file() else "without a gate"
    return (
        f"config, processor and weights load: {len(classifier.observations)} observations, {size:,} parameters, {gate}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FailedCheckError(f"{path.name} cannot be read as text") from error
