"""Commands that check and publish a model: check, push, space."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import SHARE, app, hide_bars, say, show
from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.publishing.publish import Published

DryRun = Annotated[bool, Option("--dry-run", help="List the files and send none.")]
Private = Annotated[bool, Option("--private", help="Make a new repository private.")]
_FOR_SPACE = (
    "Repository id on the Hub; or a model folder, or nih, the bundled model, whose files become part of the Space."
)
_REPO_ID = "user/name of the repository; created if it does not exist."
_SPACE_ID = "user/name of the Space; created if it does not exist."


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf check --model runs/mine")
def check(
    model: options.Model = DEFAULT_NAME,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a repository.")] = None,
    accept: Annotated[bool, Option("--accept", help="First write checksums.json for the present files.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check that a model is as it was saved and computes the same scores here.

    Recomputes its reference scores in every runtime that is installed, and checks checksums, card, code and config. The
    exit code is 1 if anything FAILED.
    """
    from chexpert_hf.models.model_files import ensemble_members, write_checksums
    from chexpert_hf.models.repositories import model_folder
    from chexpert_hf.publishing.check import check_folder

    hide_bars()
    folder = Path(model)
    if accept:
        for each in map(Path, ensemble_members(folder)):
            if not (each / "config.json").is_file():
                raise InputError(f"--accept is for a model folder, which {each} is not.")
            write_checksums(each)
    report = check_folder(folder if folder.is_dir() else model_folder(model, revision, files=None))
    show({"is_ok": report.is_ok, **asdict(report)}, report.as_table(), as_json)
    if not report.is_ok:
        raise Exit(1)


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf push me/my-model --model runs/mine --dry-run")
def push(
    repo_id: Annotated[str, Argument(metavar="REPO_ID", help=_REPO_ID)],
    model: Annotated[str, options.model("Model folder, or nih, the bundled model.")],
    private: Private = False,
    dry_run: DryRun = False,
    create_pr: Annotated[bool, Option("--create-pr", help="Open a pull request in an existing repository.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Send the public files of a model folder to the Hub in one commit.

    The token is that of `hf auth login`, or in the environment variable HF_TOKEN.
    """
    from chexpert_hf.models.repositories import expect_repo_id
    from chexpert_hf.publishing.publish import Published, push_model, stage_model

    folder = Path(model)
    if not dry_run:
        _show(push_model(folder, repo_id, private=private, create_pr=create_pr), as_json)
        return
    expect_repo_id(repo_id)
    with TemporaryDirectory() as staging:
        _show(Published(repo_id, "", None, stage_model(folder, repo_id, Path(staging))), as_json)


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf space me/my-page --model me/my-model")
def space(
    space_id: Annotated[str, Argument(metavar="SPACE_ID", help=_SPACE_ID)],
    model: Annotated[str, options.model(_FOR_SPACE)] = DEFAULT_NAME,
    output: Annotated[Path | None, options.output("With --dry-run: new or empty folder for the Space's files.")] = None,
    revision: Annotated[
        str, Option(help="Branch, tag or commit of a repository; the Space stays at its present commit.")
    ] = "main",
    private: Private = False,
    dry_run: DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Create or update a Gradio Space with the app around a model.

    The token is that of `hf auth login`, or in the environment variable HF_TOKEN.
    """
    from chexpert_hf.publishing.publish import Published, push_space, stage_space

    if not dry_run:
        if output is not None:
            raise InputError("--output needs --dry-run: a Space that is sent leaves no files here.")
        _show(push_space(model, space_id, revision=revision, private=private), as_json, by_folder=True)
        return
    with TemporaryDirectory() as scratch:
        files = stage_space(model, space_id, output or Path(scratch), revision=revision)
    _show(Published(space_id, "", None, files), as_json, by_folder=True)
    if output is not None:
        say(f"The files of the Space are in {output}.")


def _show(done: "Published", as_json: bool, *, by_folder: bool = False) -> None:
    """Print names and sizes of the files that were sent, or would be; with `by_folder`, one total per top folder."""
    from chexpert_hf.evaluation.tables import aligned

    sizes = defaultdict[str, list[int]](list)
    for name, size in done.files:
        folder, _, inside = name.partition("/")
        sizes[f"{folder}/" if by_folder and inside else name].append(size)
    cells = [["", "files", "bytes"], *([name, f"{len(each):,}", f"{sum(each):,}"] for name, each in sizes.items())]
    cells.append([done.repo_id, f"{len(done.files):,}", f"{sum(size for _, size in done.files):,}"])
    last = "Nothing was sent." if done.commit is None else f"Commit {done.commit[:12]}: {done.url}"
    show(asdict(done), f"{aligned(cells, right=(1, 2))}\n{last}", as_json)
