"""The application, its options and what its commands share."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexpert_hf import __version__
from chexpert_hf.default_model import DEFAULT_MODEL, resolve_model
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    import datasets
    from tqdm import tqdm

    from chexpert_hf.datasets.reference import Reference
    from chexpert_hf.scoring.classifier import CheXpertClassifier

DISCLAIMER = "Research software, not a medical device."

app = typer.Typer(
    name="chexpert-hf",
    help=f"DenseNet121 for chest radiographs: train, evaluate, predict, serve. {DISCLAIMER}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Split(str, Enum):
    """The splits of a CheXpert folder."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


Data = Annotated[Path, typer.Argument(help="CheXpert folder: train.csv, valid.csv and the images.")]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        default_factory=lambda: [str(DEFAULT_MODEL)],
        callback=lambda models: [str(resolve_model(model)) for model in models],
        show_default="nih, the bundled model",
        help="Model folder, repository id on the Hub, or nih, the bundled model; several make an ensemble.",
    ),
]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime", envvar="CHEXPERT_HF_RUNTIME", help="torch, onnx, openvino, or auto: the fastest that is installed."
    ),
]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        envvar="CHEXPERT_HF_PRECISION",
        help="fp32, bf16, fp16, int8 (exported graphs), or auto: bf16 where the processor has it, else fp32.",
    ),
]
FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links/--no-follow-links", help="Links to radiographs outside of the folder: follow or refuse them."
    ),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="A second reference standard: CSV with Path, and observations or targets; rows with x, y, width, height "
        "are boxes.",
    ),
]
ReferenceMap = Annotated[
    list[str] | None,
    typer.Option(
        "--reference-map",
        help="Which score stands for which of its columns, such as 'Target=Lung Opacity,Target=Pneumonia', or "
        "'Class:Normal=No Finding' for one value of a column of text.",
    ),
]
ReferenceName = Annotated[
    str | None,
    typer.Option("--reference-name", help="Who set it, such as 'RSNA radiologists'; the file's name if none."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2. Output is UTF-8 in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where a program has put an object of its own there
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    try:
        app()
    except InputError as error:
        # The last line, for what a data loader's worker raised comes with the worker's traceback in front.
        typer.echo(f"Error: {str(error).strip().splitlines()[-1]}", err=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        typer.echo(
            f"Error: a name holds {error.object[error.start : error.end]!a:.40}, which the locale's encoding for names "
            f"of files ({sys.getfilesystemencoding()}) cannot express; set the environment variable PYTHONUTF8=1.",
            err=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"chexpert-hf {__version__}")
        raise typer.Exit


def load_classifier(models: Sequence[str], runtime: str = "torch", precision: str = "fp32") -> "CheXpertClassifier":
    """Loads models; figures about a model are made with its own weights, in PyTorch and float32, unless one says."""
    from chexpert_hf.models.identity import model_warnings
    from chexpert_hf.scoring.classifier import CheXpertClassifier

    quiet_transformers()
    if list(models) == [str(DEFAULT_MODEL)]:
        typer.echo(f"Using the bundled model; its card: {DEFAULT_MODEL / 'README.md'}", err=True)
    classifier = CheXpertClassifier.from_pretrained(models, runtime=runtime, precision=precision)
    for warning in model_warnings(member.model for member in classifier.members):
        typer.echo(f"Warning: {warning}", err=True)
    return classifier


def load_fast_classifier(models: Sequence[str], runtime: str, precision: str) -> "CheXpertClassifier":
    """Loads models to score with, and says what will compute."""
    classifier = load_classifier(models, runtime, precision)
    for reason in dict.fromkeys(member.runtime.reason for member in classifier.members):
        typer.echo(f"Computing with {reason}", err=True)
    return classifier


def load_split(
    data: Path, split: Split, observations: Sequence[str], *, follow_links: bool, **options: Any
) -> "datasets.Dataset":
    """Loads one split of a CheXpert folder; `options` are those of `load_chexpert`."""
    from chexpert_hf.datasets.chexpert import load_chexpert

    name = split.value
    return load_chexpert(
        data, splits=[name], observations=observations, follow_links=follow_links, say=say_on_stderr, **options
    )[name]


def load_reference(
    file: Path | None,
    observations: Sequence[str],
    mapping: Sequence[str] | None,
    name: str | None,
    against: Sequence[str] | None = None,
) -> "Reference | None":
    """Loads the second reference standard, where one is given."""
    from chexpert_hf.datasets.reference import read_reference

    if file is None:
        if mapping or name or against:
            raise InputError(
                "--reference-map, --reference-against and --reference-name need --reference, the CSV file."
            )
        return None
    return read_reference(file, observations, mapping=mapping or (), against=against or (), name=name)


def say_on_stderr(line: str) -> None:
    """Print one line on standard error."""
    typer.echo(line, err=True)


def quiet_transformers() -> None:
    """No bar for each file of weights that is read or written."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def progress_bar(total: int, unit: str) -> "Iterator[tqdm]":
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None, dynamic_ncols=True, leave=False) as bar:
        yield bar
