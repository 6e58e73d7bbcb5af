"""A model folder as a repository on the Hub: staged whole, then sent in one commit.

What goes is what `chexpert_hf.models.model_files` lists as meant for others, and nothing else: no checkpoints, no
optimizer, no pickles, no hashes of patients, no log. The client's own `upload_folder` may divide a folder into several
commits, so that a reader could find weights of one model beside the config of another; hence `create_commit`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from chexpert_hf.errors import InputError
from chexpert_hf.models.ensembles import ENSEMBLE_FILE
from chexpert_hf.models.graph_files import read_records
from chexpert_hf.models.model_files import (
    CHECKSUMS_FILE,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    matches,
    missing_files,
    published_files,
    read_checksums,
    verify_checksums,
    write_checksums,
)
from chexpert_hf.models.repositories import expect_repo_id, expect_token, hub_errors
from chexpert_hf.publishing.card import public_recipe, rename_card
from chexpert_hf.publishing.card_check import card_problems
from chexpert_hf.publishing.model_folder import CARD_FILE

_RECIPE_FILE = "recipe.yaml"
# A licence that somebody added to the repository is theirs.
_OURS = (*(name for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if name != "LICENSE"), CHECKSUMS_FILE)


class PublishError(InputError):
    """A model folder that is not fit to be shown to others, with the reason."""


@dataclass(frozen=True)
class Published:
    """What was sent.

    Attributes:
        repo_id: Where to.
        url: Of the repository's commit, or of the pull request.
        commit: Its sha; None of a dry run.
        files: (path, size in bytes) of each file.
    """

    repo_id: str
    url: str
    commit: str | None
    files: tuple[tuple[str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def stage_model(source: Path, repo_id: str, staging: Path) -> tuple[tuple[str, int], ...]:
    """Copies what of a model folder is meant for others, under the repository's name.

    Args:
        source: The model folder; it stays as it is.
        repo_id: Becomes the name in the card.
        staging: A new or empty folder.

    Returns:
        (path, size in bytes) of each file.

    Raises:
        PublishError: If the folder is not complete, an ensemble, has no sums, or its card is not complete.
        ChecksumError: If a file is not as it was when the folder was saved.
    """
    _expect_complete(source)
    names = {name for name in published_files(source) if not _is_stray_graph(source, name)}
    for name in names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, staging / name)
    card = rename_card((staging / CARD_FILE).read_text(encoding="utf-8"), repo_id)
    if problems := card_problems(card):
        raise PublishError(f"The card of {source} ({CARD_FILE}) is not fit to be shown: {'; '.join(problems[:3])}.")
    (staging / CARD_FILE).write_text(card, encoding="utf-8")
    if _RECIPE_FILE in names:
        recipe = yaml.safe_load((staging / _RECIPE_FILE).read_text(encoding="utf-8"))
        (staging / _RECIPE_FILE).write_text(yaml.safe_dump(public_recipe(recipe), sort_keys=False), encoding="utf-8")
    write_checksums(staging)
    return listing(staging)


def listing(folder: Path) -> tuple[tuple[str, int], ...]:
    """(path, size in bytes) of each file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)


def _expect_complete(source: Path) -> None:
    if not source.is_dir():
        raise PublishError(f"Expected a model folder, got {str(source)!r}.")
    if (source / ENSEMBLE_FILE).is_file():
        raise PublishError(
            f"{source} is an ensemble, which cannot be loaded from a repository: push the model folders of its runs "
            "(run-1, ...) one by one."
        )
    if missing := missing_files(source):
        raise PublishError(
            f"{source} is not a complete model folder: {', '.join(missing)} missing; expected one as train, "
            "import or calibrate write it."
        )
    if read_checksums(source) is None:
        raise PublishError(
            f"{source} has no {CHECKSUMS_FILE}: look it over with `chexpert-hf check {source} --accept`, then push it."
        )
    verify_checksums(source)


def _is_stray_graph(source: Path, name: str) -> bool:
    """Whether this is a graph that `export.json` does not speak of."""
    return "/" in name and name not in {file for record in read_records(source).values() for file in record.sha256}


def push_model(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> Published:
    """Sends a model folder to a repository, which is made if it is not there, in one commit.

    Files of an earlier version that this one lacks, such as exported graphs, are taken out in the same commit; other
    files of the repository stay.

    Args:
        source: The model folder.
        repo_id: user/name.
        private: Whether a repository that is made now is private; one that is there stays as it is.
        create_pr: Propose the change to a repository that is there, instead of making it.
        api: Client of the Hub.

    Raises:
        PublishError, ChecksumError: See `stage_model`.
        HubError: If the Hub refuses or cannot be reached.
    """
    api = api or HfApi()
    expect_repo_id(repo_id)
    with TemporaryDirectory() as name:
        staging = Path(name)
        files = stage_model(source, repo_id, staging)
        expect_token(api)
        with hub_errors(repo_id):
            if not create_pr:
                api.create_repo(repo_id, private=private or None, exist_ok=True)
            url, sha = commit_folder(
                api,
                repo_id,
                staging,
                message=f"Upload {source.resolve().name} with chexpert-hf",
                ours=_OURS,
                create_pr=create_pr,
            )
    return Published(repo_id, url, sha, files)


def commit_folder(
    api: HfApi,
    repo_id: str,
    folder: Path,
    *,
    message: str,
    ours: Sequence[str],
    repo_type: str = "model",
    create_pr: bool = False,
) -> tuple[str, str]:
    """Sends a folder in one commit.

    Args:
        api: Client of the Hub.
        repo_id: user/name.
        folder: Everything in it goes.
        message: Of the commit.
        ours: Names or patterns of what this package writes there; what of it the folder lacks is deleted.
        repo_type: "model" or "space".
        create_pr: Propose it instead.

    Returns:
        The address of the commit or pull request, and the commit's sha.
    """
    names = [name for name, _ in listing(folder)]
    there = api.list_repo_files(repo_id, repo_type=repo_type)
    gone = [name for name in there if name not in names and any(matches(name, pattern) for pattern in ours)]
    done = api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path_in_repo=name) for name in gone),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
        ],
        commit_message=message,
        repo_type=repo_type,
        create_pr=create_pr,
    )
    return str(done.pr_url or done.commit_url), str(done.oid)
