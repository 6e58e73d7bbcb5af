"""The Typer application, and the functions that its commands share."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Exit, Option, Typer, echo

from chexpert_hf import DISCLAIMER, __version__
from chexpert_hf.cli.help import Command
from chexpert_hf.cli.old_spellings import Group
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    import datasets
    from tqdm import tqdm

    from chexpert_hf.datasets.reference import Reference
    from chexpert_hf.scoring.classifier import CheXpertClassifier


class _App(Typer):
    """A Typer application whose commands show their help as `help.Command` does."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, cls=Command, **options)


app = _App(
    cls=Group,
    name="chexpert-hf",
    help=f"DenseNet121 for chest radiographs: train, evaluate, predict, serve. {DISCLAIMER}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

START, MODEL, SHARE, INSPECT = "Start", "Train and evaluate", "Share and convert", "Inspect"
"""Titles of the groups of commands in `--help`."""

say = partial(echo, err=True)
"""Prints one line on standard error."""


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2. Output is UTF-8 in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not where a program has put an object of its own there
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    try:
        app()
    except InputError as error:
        # The last line, because an error from a data loader's worker starts with the worker's traceback.
        say(f"Error: {str(error).strip().splitlines()[-1]}")
        sys.exit(2)
    except UnicodeEncodeError as error:
        name, encoding = error.object[error.start : error.end], sys.getfilesystemencoding()
        say(
            f"Error: a file name holds {name!a:.40}, which the locale's encoding for file names ({encoding}) cannot "
            "express; set the environment variable PYTHONUTF8=1."
        )
        sys.exit(2)
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(130)


@app.callback(invoke_without_command=True)
def show_version(  # noqa: D103 - a docstring would become the help of all commands
    version: Annotated[bool, Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        echo(f"chexpert-hf {__version__}")
        raise Exit


def load_classifier(
    models: Sequence[str], runtime: str | None = None, precision: str | None = None, *, autotune: bool = True
) -> "CheXpertClassifier":
    """Load one model, or several as an ensemble, and print its warnings on standard error.

    Without `runtime` and `precision` the classifier computes in PyTorch and float32, as evaluations need it. With
    `runtime`, such as "auto", a line says which one was chosen and why. If `autotune` is False, "auto" on a CPU chooses
    in a fixed order instead of timing the runtimes.
    """
    from chexpert_hf.models.loading import model_warnings
    from chexpert_hf.scoring.classifier import CheXpertClassifier

    hide_bars()
    if list(models) == [str(DEFAULT_MODEL)]:
        say(f"Using the bundled model; its card: {DEFAULT_MODEL / 'README.md'}")
    taken = {"runtime": runtime or "torch", "precision": precision or "fp32"}
    classifier = CheXpertClassifier.from_pretrained(models, **taken, autotune=autotune)
    for warning in model_warnings(member.model for member in classifier.members):
        say(f"Warning: {warning}")
    for reason in dict.fromkeys(member.runtime.reason for member in classifier.members) if runtime else ():
        say(f"Computing with {reason}")
    return classifier


def load_split(
    data: Path | Sequence[Path], split: str, observations: Sequence[str], **options: Any
) -> "datasets.Dataset":
    """Load one split of a data set; `options` are those of `load_dataset`."""
    from chexpert_hf.datasets.loading import load_dataset

    return load_dataset(data, splits=[split], observations=observations, say=say, **options)[split]


def load_reference(
    file: Path | None,
    images: Sequence[str],
    observations: Sequence[str],
    mapping: Sequence[str] | None,
    name: str | None,
    against: Sequence[str] | None = None,
) -> "Reference | None":
    """Load a second reference standard from `file`, the CSV file of `--reference`; return None if `file` is None.

    `images` are the paths of the data set's images, `observations` those that the model scores. `mapping`, `name` and
    `against` are the options `--reference-map`, `--reference-name` and `--reference-against`; any of them without a
    file raises InputError.
    """
    if file is not None:
        from chexpert_hf.datasets.reference import read_reference

        options: dict[str, Any] = {"mapping": mapping or (), "against": against or (), "name": name}
        return read_reference(file, observations, images=images, **options)
    if mapping or name or against:
        raise InputError("--reference-map, --reference-against and --reference-name need --reference, the CSV file.")
    return None


def show(result: Any, text: str, as_json: bool) -> None:
    """Print a command's result on standard output: `result` as JSON with `as_json`, else `text`."""
    echo(json.dumps(result) if as_json else text)


def hide_bars() -> None:
    """Hide the progress bars that transformers shows for each file of weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def progress_bar(total: int, unit: str = "", **options: Any) -> "tqdm":
    """Return a progress bar on standard error, if that is a terminal, to be used in a `with` statement.

    `options` are those of tqdm.
    """
    from tqdm import tqdm  # takes 20 ms to import

    return tqdm(total=total, unit=f" {unit}", disable=None, dynamic_ncols=True, leave=False, **options)
