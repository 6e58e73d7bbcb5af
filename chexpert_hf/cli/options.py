"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from chexpert_hf.default_model import DEFAULT_NAME, resolve_model
from chexpert_hf.errors import InputError
from chexpert_hf.files import require_empty
from chexpert_hf.models.model_files import no_model


def output(text: str) -> Any:
    """Return the option --output with this help text."""
    return Option("--output", "-o", help=text)


def model(text: str) -> Any:
    """Return the option --model for one model, with this help text; its value is checked by `existing_model`."""
    return Option("--model", "-m", help=text, callback=lambda name: name and existing_model(name))


def existing_model(name: str) -> str:
    """Return the path of a model folder, also for "nih"; return the id of a repository on the Hub as it is.

    This is called before torch is imported, so that a wrong name is refused at once. Whether the repository exists is
    not checked.

    Raises:
        InputError: If `name` is neither a model folder nor the id of a repository.
    """
    path = Path(resolve_model(name))
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "ensemble.json")):
            raise no_model(path, name)
        return str(path)
    if len(path.parts) == 2 and not path.is_absolute() and not name.startswith((".", "~")):
        return name
    raise InputError(
        f"{name!r} is neither a model folder nor the id of a repository. Expected a folder with config.json, "
        f"user/name, or {DEFAULT_NAME}, the bundled model."
    )


def new_folder(text: str) -> Any:
    """Return the option --output for a folder that must be new or empty; `text` is the option's help text."""

    def check(folder: Path) -> Path:
        require_empty(folder)
        return folder

    return Option("--output", "-o", help=text, callback=check)


def _existing(data: Any) -> Any:
    """Return `data`; raise InputError if a path does not exist, unless it may be a data set of the Hub (owner/name).

    This is called before torch is imported, so that a wrong path is refused at once.
    """
    for path in data if isinstance(data, list) else [data]:
        if not path.exists() and (path.is_absolute() or len(path.parts) != 2):
            raise InputError(f"Expected the folder of a data set, but {str(path)!r} does not exist.")
    return data


Split = Literal["train", "valid", "test"]
_DATA = "Data set: a folder with CheXpert's train.csv, valid.csv and images, or in another known layout, or a CSV file"
Data = Annotated[Path, Argument(metavar="DATA", help=f"{_DATA}.", callback=_existing)]
SeveralData = Annotated[
    list[Path], Argument(metavar="DATA", help=f"{_DATA}; several count as one.", callback=_existing)
]
MODEL_HELP = "Model folder, repository id on the Hub, or nih, the bundled model"
Model = Annotated[str, model(f"{MODEL_HELP}.")]


def _models(several: str) -> Any:
    return Option(
        "--model",
        "-m",
        default_factory=lambda: [DEFAULT_NAME],
        callback=lambda models: [existing_model(model) for model in models],
        show_default=DEFAULT_NAME,
        help=f"{MODEL_HELP}; {several}.",
    )


Models = Annotated[list[str], _models("several make an ensemble")]
ComparedModels = Annotated[list[str], _models("several are compared with the first")]
_RUNTIMES = "torch, onnx, openvino, or auto: the fastest that is installed."
_PRECISIONS = "fp32, bf16, fp16, int8 (exported graphs), or auto: fp32, or bf16 where it is a tenth faster."
_AUTOTUNE = "Find the fastest by timing on first use, and keep the choice; if not, by the processor's instructions."
RuntimeName = Annotated[str, Option("--runtime", envvar="CHEXPERT_HF_RUNTIME", help=_RUNTIMES)]
PrecisionName = Annotated[str, Option("--precision", envvar="CHEXPERT_HF_PRECISION", help=_PRECISIONS)]
Autotune = Annotated[bool, Option("--autotune/--no-autotune", envvar="CHEXPERT_HF_AUTOTUNE", help=_AUTOTUNE)]
_LAYOUT = "Layout of the data, such as nih or table:image=FILE,patient=PID; recognised if not given."
LayoutName = Annotated[str | None, Option("--layout", help=_LAYOUT)]
_LINKS = "Links to radiographs outside of the folder: follow or refuse them."
FollowLinks = Annotated[bool, Option("--follow-links/--no-follow-links", help=_LINKS)]
_HELD_OUT = "Share of the training patients to hold out if the data set has no valid split; 1 for all."
ValidFraction = Annotated[float, Option(min=0.001, max=1, help=_HELD_OUT)]
Replicates = Annotated[int, Option(min=100, help="Number of bootstrap samples of patients.")]
_REFERENCE = "CSV with the column Path and a column per finding; rows with x, y, width, height are boxes."
ReferenceFile = Annotated[Path | None, Option("--reference", help=f"A second reference standard: {_REFERENCE}")]
_MAP = (
    "Which observation each of its columns is compared with, such as 'Target=Lung Opacity,Target=Pneumonia', or "
    "'Class:Normal=No Finding' for one value of a column of text."
)
ReferenceMap = Annotated[list[str] | None, Option("--reference-map", help=_MAP)]
_NAME = "Name of the reference standard, such as 'RSNA radiologists'; by default the file's name."
ReferenceName = Annotated[str | None, Option("--reference-name", help=_NAME)]


def _workers(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise InputError(f"--workers is {text!r}, expected a number of processes, or auto.")
    return int(text)


def workers(**settings: Any) -> Any:
    """Return the option --workers, with typer's `settings` such as its help text."""
    return Option("--workers", metavar="N|auto", parser=_workers, **settings)


_WORKERS = "Processes that read images, 0 for threads of this one; auto: as many as there are processors beside a GPU."
NumWorkers = Annotated[Any, workers(help=_WORKERS)]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON.")]
