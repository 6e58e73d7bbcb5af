"""The application, and the functions that its commands share."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Exit, Option, Typer, echo

from chexpert_hf import DISCLAIMER, __version__
from chexpert_hf.cli.options import Split
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    import datasets
    from tqdm import tqdm

    from chexpert_hf.datasets.reference import Reference
    from chexpert_hf.scoring.classifier import CheXpertClassifier

app = Typer(
    name="chexpert-hf",
    help=f"DenseNet121 for chest radiographs: train, evaluate, predict, serve. {DISCLAIMER}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2. Output is UTF-8 in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where a program has put an object of its own there
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    try:
        app()
    except InputError as error:
        # The last line, for what a data loader's worker raised comes with the worker's traceback in front.
        echo(f"Error: {str(error).strip().splitlines()[-1]}", err=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        echo(
            f"Error: a name holds {error.object[error.start : error.end]!a:.40}, which the locale's encoding for names "
            f"of files ({sys.getfilesystemencoding()}) cannot express; set the environment variable PYTHONUTF8=1.",
            err=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        echo("Interrupted.", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        echo(f"chexpert-hf {__version__}")
        raise Exit


def load_classifier(models: Sequence[str], runtime: str = "torch", precision: str = "fp32") -> "CheXpertClassifier":
    """Loads models, by default in PyTorch and float32, as evaluations need them, and shows their warnings."""
    from chexpert_hf.models.loading import model_warnings
    from chexpert_hf.scoring.classifier import CheXpertClassifier

    quiet_transformers()
    if list(models) == [str(DEFAULT_MODEL)]:
        echo(f"Using the bundled model; its card: {DEFAULT_MODEL / 'README.md'}", err=True)
    classifier = CheXpertClassifier.from_pretrained(models, runtime=runtime, precision=precision)
    for warning in model_warnings(member.model for member in classifier.members):
        echo(f"Warning: {warning}", err=True)
    return classifier


def load_fast_classifier(models: Sequence[str], runtime: str, precision: str) -> "CheXpertClassifier":
    """Loads models to score with, and reports their runtime."""
    classifier = load_classifier(models, runtime, precision)
    for reason in dict.fromkeys(member.runtime.reason for member in classifier.members):
        echo(f"Computing with {reason}", err=True)
    return classifier


def load_split(data: Path, split: Split, observations: Sequence[str], **options: Any) -> "datasets.Dataset":
    """Loads one split of a CheXpert folder; `options` are those of `load_chexpert`."""
    from chexpert_hf.datasets.chexpert import load_chexpert

    return load_chexpert(data, splits=[split], observations=observations, say=say_on_stderr, **options)[split]


def load_reference(
    file: Path | None,
    observations: Sequence[str],
    mapping: Sequence[str] | None,
    name: str | None,
    against: Sequence[str] | None = None,
) -> "Reference | None":
    """Loads the second reference standard, where one is given."""
    if file is None:
        if mapping or name or against:
            raise InputError(
                "--reference-map, --reference-against and --reference-name need --reference, the CSV file."
            )
        return None
    from chexpert_hf.datasets.reference import read_reference

    return read_reference(file, observations, mapping=mapping or (), against=against or (), name=name)


def say_on_stderr(line: str) -> None:
    """Prints one line on standard error."""
    echo(line, err=True)


def show(result: Any, text: str, as_json: bool) -> None:
    """Prints a command's result on standard output: as JSON, or as text."""
    echo(json.dumps(result) if as_json else text)


def quiet_transformers() -> None:
    """Shows no progress bar for each file of weights that is read or written."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def progress_bar(total: int, unit: str) -> "Iterator[tqdm]":
    """A progress bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None, dynamic_ncols=True, leave=False) as bar:
        yield bar
