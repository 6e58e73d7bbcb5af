"""Uploads model folders to repositories on the Hub, and the app to a Space: staged whole, then sent in one commit.

Only the files that `chexpert_hf.models.model_files` lists as public are sent: no checkpoints, optimizer states,
pickles, logs or hashed patient ids. The Hub client's `upload_folder` may divide a folder into several commits, and a
download in between would mix two models. `create_commit` sends everything at once.

A Space holds the files of `space/`, one version of one model, a copy of this package, and the package's requirements.
The copy is needed because the package is not on PyPI. Gradio is not among the requirements: a Space gets the version
that its README names.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, metadata_load, metadata_save

import chexpert_hf
from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.files import require_empty, write_json, write_text
from chexpert_hf.models import model_files
from chexpert_hf.models.graph_files import read_records
from chexpert_hf.models.model_files import CHECKSUMS_FILE, ENSEMBLE_FILE, OPTIONAL_FILES, RECIPE_FILE, REQUIRED_FILES
from chexpert_hf.models.repositories import expect_repo_id, expect_token, hub_errors
from chexpert_hf.publishing.card import card_problems, project_path, public_recipe, rename_card
from chexpert_hf.publishing.check import expect_own_scores
from chexpert_hf.publishing.model_folder import CARD_FILE

# LICENSE is not ours: a user may have added it to the repository.
_MODEL_REPOSITORY = (*(name for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if name != "LICENSE"), CHECKSUMS_FILE)

_MODEL_FILE = "model.json"  # names the repository and the commit whose model the Space serves
_TEMPLATE_FILES = ("README.md", "app.py", "examples/*.jpg", "examples/*.md")
_DRAWINGS = "examples/drawings/*.jpg"  # each is named after its observation
_PACKAGE_SUFFIXES = (".py", ".typed", ".jinja", ".html", ".js", ".css", ".svg", ".json", ".md", ".bib", ".yaml", ".txt")
# Folders of the package that are not copied: compiled files, the Space's own template, and the bundled model.
_NOT_COPIED = {"__pycache__", "space", DEFAULT_MODEL.name}
_SPACE_FILES = ("README.md", "app.py", "requirements.txt", _MODEL_FILE)
_SPACE_FOLDERS = ("chexpert_hf", "examples", "model")
_SHA = re.compile(r"[0-9a-f]{40}")

Listing = tuple[tuple[str, int], ...]
"""(path, size in bytes) of each file."""


class PublishError(InputError):
    """A model folder that cannot be published; the message says why."""


@dataclass(frozen=True)
class Published:
    """The result of sending a folder to the Hub, or of a dry run; `files` are the files sent, with their sizes."""

    repo_id: str
    url: str  # of the commit or pull request; empty for a dry run
    commit: str | None  # its SHA; None for a dry run
    files: Listing


def stage_model(source: Path, repo_id: str, staging: Path, model_id: str | None = None) -> Listing:
    """Copy the public files of a model folder to an empty folder, with the repository's name in the card.

    The card's examples load the model from `model_id`, or from the repository if None. Returns the copied files.

    Raises:
        PublishError: If the folder is incomplete or an ensemble, has no checksums or an incomplete card, cannot be
            loaded, or does not compute the scores in its `reference.json`.
        ChecksumError: If a file has changed since the folder was saved.
    """
    _expect_complete(source)
    recorded = {file for record in read_records(source).values() for file in record.sha256}
    names = [name for name in model_files.published_files(source) if "/" not in name or name in recorded]
    for name in names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, staging / name)
    card = rename_card((staging / CARD_FILE).read_text(encoding="utf-8"), repo_id, model_id)
    if problems := card_problems(card):
        raise PublishError(f"The card of {source} ({CARD_FILE}) cannot be published: {'; '.join(problems[:3])}.")
    write_text(staging / CARD_FILE, card)
    if RECIPE_FILE in names:
        recipe = yaml.safe_load((staging / RECIPE_FILE).read_text(encoding="utf-8"))
        write_text(staging / RECIPE_FILE, yaml.safe_dump(public_recipe(recipe), sort_keys=False))
    model_files.write_checksums(staging)
    return listing(staging)


def listing(folder: Path) -> Listing:
    """List all files below a folder with their sizes."""
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
    if missing := model_files.missing_files(source):
        raise PublishError(
            f"{source} is not a complete model folder: {', '.join(missing)} missing; expected one as train, "
            "import or calibrate write it."
        )
    if model_files.read_checksums(source) is None:
        raise PublishError(
            f"{source} has no {CHECKSUMS_FILE}: run `chexpert-hf check --model {source} --accept`, then push it."
        )
    model_files.verify_checksums(source)
    try:
        expect_own_scores(source)
    except InputError as error:
        raise PublishError(
            f"{source} does not compute the scores in its reference.json ({str(error).rstrip('.')}), so its card may "
            "describe other weights: write the folder again with chexpert_hf.save_model_folder."
        ) from error


def push_model(
    source: Path, repo_id: str, *, private: bool = False, create_pr: bool = False, api: HfApi | None = None
) -> Published:
    """Send a model folder to a repository in one commit, and create the repository if it is missing.

    The same commit deletes files of an earlier version that this one lacks, such as exported graphs; other files of the
    repository stay. `private` is for a new repository; `create_pr` opens a pull request in an existing one.

    Raises:
        PublishError: If the folder is not fit to be published, such as without a complete card.
        ChecksumError: If a file has changed since the folder was saved.
        HubError: If the Hub refuses or cannot be reached.
    """
    expect_repo_id(repo_id)
    with TemporaryDirectory() as staging:
        stage_model(source, repo_id, Path(staging))
        return send_folder(
            Path(staging),
            repo_id,
            message=f"Upload {source.resolve().name} with chexpert-hf",
            is_ours=lambda name: any(model_files.matches(name, pattern) for pattern in _MODEL_REPOSITORY),
            private=private,
            create_pr=create_pr,
            api=api or HfApi(),
        )


def send_folder(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    is_ours: Callable[[str], bool],
    private: bool,
    api: HfApi,
    repo_type: str = "model",
    create_pr: bool = False,
) -> Published:
    """Send all files of a folder in one commit to a repository, or to a Space if `repo_type` is "space".

    A missing repository is created, private if `private` is set. Files of the repository that the folder lacks are
    deleted if `is_ours(path)` says that this package wrote them. `message` is the commit message. With `create_pr`, the
    commit is a pull request, and the repository must exist. Raises HubError if the Hub refuses or cannot be reached.
    """
    expect_token(api)
    files = listing(folder)
    names = [name for name, _ in files]
    with hub_errors(repo_id):
        if not create_pr:
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=private or None, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=repo_type)
        done = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in there if name not in names and is_ours(name)),
                *(CommitOperationAdd(name, folder / name) for name in names),
            ],
            commit_message=message,
            repo_type=repo_type,
            create_pr=create_pr,
        )
    return Published(repo_id, str(done.pr_url or done.commit_url), str(done.oid), files)


def stage_space(
    model: str, space_id: str, staging: Path, *, revision: str = "main", api: HfApi | None = None
) -> Listing:
    """Write all files of a Space to a new or empty folder, and list them.

    `model` is a model folder or a repository. A model folder is copied into the Space, with example drawings of the
    findings that the model scores. From a repository, the Space downloads the model when it starts, always from the
    commit that `revision` names now. Such a Space gets all example drawings, and its app hides those of findings that
    the model does not detect.

    Raises:
        InputError: If `staging` is not empty, or the model folder is not fit to be published.
        HubError: If the repository's commit cannot be looked up.
    """
    expect_repo_id(space_id)
    require_empty(staging, "expected a new folder for the files of the Space")
    is_folder = Path(model).is_dir()
    if not is_folder:
        expect_repo_id(model)
        if not _SHA.fullmatch(revision):
            with hub_errors(model, is_upload=False):
                revision = str((api or HfApi()).model_info(model, revision=revision).sha)
    template, home = project_path("space"), Path(chexpert_hf.__file__).parent
    copies = {path: path.relative_to(template) for pattern in _TEMPLATE_FILES for path in template.glob(pattern)}
    judged = CheXpertConfig.from_pretrained(model).observations if is_folder else None
    drawings = (path for path in template.glob(_DRAWINGS) if judged is None or path.stem in judged)
    copies |= {path: path.relative_to(template) for path in drawings}
    for path in home.rglob("*"):
        inside = path.relative_to(home)
        if path.is_file() and path.suffix in _PACKAGE_SUFFIXES and not _NOT_COPIED & set(inside.parts):
            copies[path] = Path("chexpert_hf") / inside
    for path, name in copies.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staging / name)
    write_text(staging / "requirements.txt", "\n".join(requirements()) + "\n")
    if is_folder:
        stage_model(Path(model), Path(model).resolve().name, staging / "model", model_id="model")
    else:
        write_json(staging / _MODEL_FILE, {"model": model, "revision": revision})
        # The name of the model links it and the Space to each other on the Hub.
        readme = staging / "README.md"
        metadata_save(readme, {**(metadata_load(readme) or {}), "models": [model]})
    return listing(staging)


def push_space(
    model: str, space_id: str, *, revision: str = "main", private: bool = False, api: HfApi | None = None
) -> Published:
    """Create or update a Space in one commit; a new Space runs on the Hub's free CPUs.

    `model` is a model folder or a repository, and `revision` a branch, tag or commit of the repository. `private` is
    for a new Space.

    Raises:
        InputError: If the model folder is not fit to be published.
        HubError: If the Hub refuses or cannot be reached.
    """
    api = api or HfApi()
    with TemporaryDirectory() as name:
        stage_space(model, space_id, Path(name), revision=revision, api=api)
        return send_folder(
            Path(name),
            space_id,
            message=f"The page of chexpert-hf {chexpert_hf.__version__}",
            is_ours=lambda path: path in _SPACE_FILES or path.split("/")[0] in _SPACE_FOLDERS,
            private=private,
            api=api,
            repo_type="space",
        )


def requirements() -> list[str]:
    """Return a Space's requirements: OpenVINO, timm, and what this package requires except Gradio.

    Every Space has Gradio already. Raises InputError if this package is not installed.
    """
    try:
        declared = metadata.requires("chexpert-hf") or []
    except metadata.PackageNotFoundError as error:
        raise InputError("chexpert-hf is not installed, so its requirements are not known: pip install it.") from error
    names = {text: re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0].lower() for text in declared}
    # OpenVINO, an extra, is several times as fast as PyTorch on a Space's two cores (docs/results/speed.md). timm, an
    # extra, too, has the backbones of some models.
    chosen = (
        text
        for text, name in names.items()
        if name in ("openvino", "timm") or ("extra ==" not in text and name != "gradio")
    )
    return sorted({text.partition(";")[0].strip() for text in chosen})
