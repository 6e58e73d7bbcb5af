"""The page as a Gradio Space: the files of `space/`, this package beside them, and one version of one model.

The package is on no index, so that the Space carries its source, and its requirements are those that the package
declares. Gradio is not among them: a Space gets the version that its README names.
"""

import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import HfApi

import chexpert_hf
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.models.repositories import expect_repo_id, expect_token, hub_errors
from chexpert_hf.publishing.publish import Published, commit_folder, listing, stage_model

MODEL_FILE = "model.json"
"""Names the repository and the commit whose model the Space serves."""

_DISTRIBUTION = "chexpert-hf"
_TEMPLATE_FILES = ("README.md", "app.py", "examples/*.jpg", "examples/*.md", "examples/drawings/*.jpg")
_PACKAGE_SUFFIXES = (".py", ".typed", ".jinja", ".html", ".js", ".css", ".svg", ".json", ".md")
# Of the package: what was compiled, the Space's own template, and the bundled model.
_LEFT_AT_HOME = {"__pycache__", "space", DEFAULT_MODEL.name}
_OURS = ("README.md", "app.py", "requirements.txt", MODEL_FILE)
_OUR_FOLDERS = ("chexpert_hf", "examples", "model")
_SHA = re.compile(r"[0-9a-f]{40}")
# OpenVINO scores several times as fast as PyTorch on a Space's two cores (README, Speed).
_EXTRA_REQUIREMENTS = ("openvino",)
_NOT_REQUIRED = ("gradio",)


def template_folder() -> Path:
    """The files of a Space: beside this module once installed, at the top of the project in a checkout."""
    installed = Path(__file__).with_name("space")
    return installed if installed.exists() else Path(__file__).parents[2] / "space"


def stage_space(
    model: str, space_id: str, staging: Path, *, revision: str = "main", api: HfApi | None = None
) -> tuple[tuple[str, int], ...]:
    """Writes everything that a Space consists of.

    Args:
        model: Id of a repository, or a model folder, which then becomes part of the Space.
        space_id: user/name of the Space.
        staging: A new or empty folder.
        revision: Of the repository: branch, tag or commit; the Space stays at the commit that it is now.
        api: Client of the Hub.

    Returns:
        (path, size in bytes) of each file.

    Raises:
        InputError: If `staging` is not empty, or the model folder is not fit to be shown.
        HubError: If the repository's commit cannot be found out.
    """
    expect_repo_id(space_id)
    if staging.exists() and (not staging.is_dir() or any(staging.iterdir())):
        raise InputError(f"{staging} is not empty; expected a new folder for the files of the Space.")
    is_folder = Path(model).is_dir()
    commit = None if is_folder else _commit_of(model, revision, api or HfApi())
    template = template_folder()
    for pattern in _TEMPLATE_FILES:
        for path in template.glob(pattern):
            _copy(path, staging / path.relative_to(template))
    _copy_package(staging / "chexpert_hf")
    (staging / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    if is_folder:
        stage_model(Path(model), Path(model).resolve().name, staging / "model")
    else:
        pinned = json.dumps({"model": model, "revision": commit}, indent=2)
        (staging / MODEL_FILE).write_text(pinned + "\n", encoding="utf-8")
    _fill_front_matter(staging / "README.md", None if is_folder else model)
    return listing(staging)


def push_space(
    model: str, space_id: str, *, revision: str = "main", private: bool = False, api: HfApi | None = None
) -> Published:
    """Makes a Space, or brings one up to date, in one commit; on the Hub's free processors unless it says otherwise.

    Args:
        model: Id of a repository, or a model folder.
        space_id: user/name of the Space.
        revision: Of the repository.
        private: Whether a Space that is made now is private.
        api: Client of the Hub.

    Raises:
        InputError: See `stage_space`.
        HubError: If the Hub refuses or cannot be reached.
    """
    api = api or HfApi()
    with TemporaryDirectory() as name:
        files = stage_space(model, space_id, Path(name), revision=revision, api=api)
        expect_token(api)
        with hub_errors(space_id):
            api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
            there = api.list_repo_files(space_id, repo_type="space")
            ours = [*_OURS, *(path for path in there if path.split("/")[0] in _OUR_FOLDERS)]
            message = f"The page of chexpert-hf {chexpert_hf.__version__}"
            url, sha = commit_folder(api, space_id, Path(name), message=message, ours=ours, repo_type="space")
    return Published(space_id, url, sha, files)


def requirements() -> list[str]:
    """What the package declares, and OpenVINO; without Gradio, which a Space installs by itself."""
    try:
        declared = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise InputError("chexpert-hf is not installed, so its requirements are not known: pip install it.") from error
    plain = [text.partition(";")[0].strip() for text in declared if "extra ==" not in text]
    extra = [text.partition(";")[0].strip() for text in declared if _name(text) in _EXTRA_REQUIREMENTS]
    return sorted({text for text in (*plain, *extra) if _name(text) not in _NOT_REQUIRED})


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()


def _commit_of(model: str, revision: str, api: HfApi) -> str:
    expect_repo_id(model)
    if _SHA.fullmatch(revision):
        return revision
    with hub_errors(model, is_upload=False):
        return str(api.model_info(model, revision=revision).sha)


def _copy_package(target: Path) -> None:
    home = Path(chexpert_hf.__file__).parent
    for path in home.rglob("*"):
        inside = path.relative_to(home)
        if path.is_file() and path.suffix in _PACKAGE_SUFFIXES and not _LEFT_AT_HOME & set(inside.parts):
            _copy(path, target / inside)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _fill_front_matter(readme: Path, model: str | None) -> None:
    """Names the model, so that the Space and its model refer to each other on the Hub."""
    _, front, body = readme.read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front) | ({"models": [model]} if model else {})
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    readme.write_text(f"---\n{text}---\n{body}", encoding="utf-8")
