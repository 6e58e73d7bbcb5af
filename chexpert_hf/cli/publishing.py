"""Publishing a model: check, push, space."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import SHARE, app, hide_bars, show
from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.publishing.publish import Published

Private = Annotated[bool, Option("--private", help="Make a new repository private.")]
_MODEL = "Repository id on the Hub; or a model folder, or nih, the bundled model, whose files become part of the Space."


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf check runs/mine")
def check(
    model: Annotated[str, Argument(help="Model folder, repository id on the Hub, or nih, the bundled model.")],
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a repository.")] = None,
    accept: Annotated[bool, Option("--accept", help="First write checksums.json for the present files.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check that a model is as it was saved and computes the same scores here.

    Recomputes its reference scores in every runtime that is installed, and checks checksums, card, code and config. The
    exit code is 1 if anything FAILED.
    """
    from chexpert_hf.models.model_files import write_checksums
    from chexpert_hf.models.repositories import model_folder
    from chexpert_hf.publishing.check import check_folder

    hide_bars()
    folder = Path(resolve_model(model))
    if accept:
        if not (folder / "config.json").is_file():
            raise InputError(f"--accept is for a model folder, which {model} is not.")
        write_checksums(folder)
    report = check_folder(folder if folder.is_dir() else model_folder(model, revision, files=None))
    show({"is_ok": report.is_ok, **asdict(report)}, report.as_table(), as_json)
    if not report.is_ok:
        raise Exit(1)


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf push runs/mine me/my-model --dry-run")
def push(
    model: Annotated[Path, Argument(help="Model folder, or nih, the bundled model.")],
    repo_id: Annotated[str, Argument(help="user/name; created if it does not exist.")],
    private: Private = False,
    dry_run: Annotated[bool, Option("--dry-run", help="List the files and send none; needs no network.")] = False,
    create_pr: Annotated[bool, Option("--create-pr", help="Open a pull request in an existing repository.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Send the public files of a model folder to the Hub in one commit.

    The token is the one of `hf auth login`, or in HF_TOKEN.
    """
    from chexpert_hf.models.repositories import expect_repo_id
    from chexpert_hf.publishing.publish import Published, push_model, stage_model

    model = Path(resolve_model(model))
    if not dry_run:
        _show(push_model(model, repo_id, private=private, create_pr=create_pr), as_json)
        return
    expect_repo_id(repo_id)
    with TemporaryDirectory() as staging:
        _show(Published(repo_id, "", None, stage_model(model, repo_id, Path(staging))), as_json)


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf space me/my-model me/my-page")
def space(
    model: Annotated[str, Argument(help=_MODEL)],
    space_id: Annotated[str, Argument(help="user/name of the Space; created if it does not exist.")],
    revision: Annotated[str, Option(help="Revision of a repository, fixed at its present commit.")] = "main",
    private: Private = False,
    dry_run: Annotated[Path | None, Option("--dry-run", help="Write the Space's files to this folder.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Create or update a Gradio Space with the app around a model."""
    from chexpert_hf.publishing.publish import Published, push_space, stage_space

    model = str(resolve_model(model))
    if dry_run is None:
        _show(push_space(model, space_id, revision=revision, private=private), as_json)
        return
    files = stage_space(model, space_id, dry_run, revision=revision)
    _show(Published(space_id, "", None, files), as_json, f"The files of the Space are in {dry_run}.")


def _show(done: "Published", as_json: bool, last: str = "Nothing was sent.") -> None:
    lines = [f"{size:>12,}  {name}" for name, size in done.files]
    lines.append(f"{sum(size for _, size in done.files):>12,}  bytes in {len(done.files)} files for {done.repo_id}")
    lines.append(last if done.commit is None else f"Commit {done.commit[:12]}: {done.url}")
    show(asdict(done), "\n".join(lines), as_json)
