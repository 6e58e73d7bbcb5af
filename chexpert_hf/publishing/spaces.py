"""The app as a Gradio Space: the files of `space/`, this package beside them, and one version of one model.

The package is on no index, so the Space carries its source and the requirements that it declares. Gradio is not among
them: a Space gets the version that its README names.
"""

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
from chexpert_hf.files import require_empty, write_json, write_text
from chexpert_hf.models.repositories import expect_repo_id, hub_errors
from chexpert_hf.publishing.card import project_path
from chexpert_hf.publishing.publish import Listing, Published, listing, send_folder, stage_model

_MODEL_FILE = "model.json"  # names the repository and the commit whose model the Space serves
_TEMPLATE_FILES = ("README.md", "app.py", "examples/*.jpg", "examples/*.md", "examples/drawings/*.jpg")
_PACKAGE_SUFFIXES = (".py", ".typed", ".jinja", ".html", ".js", ".css", ".svg", ".json", ".md", ".bib", ".yaml")
# Folders of the package that are not copied: compiled files, the Space's own template, and the bundled model.
_NOT_COPIED = {"__pycache__", "space", DEFAULT_MODEL.name}
_OURS = ("README.md", "app.py", "requirements.txt", _MODEL_FILE)
_OUR_FOLDERS = ("chexpert_hf", "examples", "model")
_SHA = re.compile(r"[0-9a-f]{40}")


def stage_space(
    model: str, space_id: str, staging: Path, *, revision: str = "main", api: HfApi | None = None
) -> Listing:
    """Writes all files of a Space to a new or empty folder.

    A model folder becomes part of the Space; a repository is pinned to the present commit of `revision`.

    Raises:
        InputError: If `staging` is not empty, or the model folder is not fit to be published.
        HubError: If the repository's commit cannot be found out.
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
    for path in home.rglob("*"):
        inside = path.relative_to(home)
        if path.is_file() and path.suffix in _PACKAGE_SUFFIXES and not _NOT_COPIED & set(inside.parts):
            copies[path] = Path("chexpert_hf") / inside
    for path, name in copies.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staging / name)
    write_text(staging / "requirements.txt", "\n".join(requirements()) + "\n")
    if is_folder:
        stage_model(Path(model), Path(model).resolve().name, staging / "model")
    else:
        write_json(staging / _MODEL_FILE, {"model": model, "revision": revision})
    _, front, body = (staging / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    # The name of the model links it and the Space to each other on the Hub.
    values = yaml.safe_load(front) | ({} if is_folder else {"models": [model]})
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(staging / "README.md", f"---\n{front}---\n{body}")
    return listing(staging)


def push_space(
    model: str, space_id: str, *, revision: str = "main", private: bool = False, api: HfApi | None = None
) -> Published:
    """Creates or updates a Space in one commit; a new one, `private` or not, runs on the Hub's free processors.

    Raises:
        InputError: See `stage_space`.
        HubError: If the Hub refuses or cannot be reached.
    """
    api = api or HfApi()
    with TemporaryDirectory() as name:
        stage_space(model, space_id, Path(name), revision=revision, api=api)
        return send_folder(
            Path(name),
            space_id,
            message=f"The page of chexpert-hf {chexpert_hf.__version__}",
            is_ours=lambda path: path in _OURS or path.split("/")[0] in _OUR_FOLDERS,
            private=private,
            api=api,
            repo_type="space",
        )


def requirements() -> list[str]:
    """The declared requirements of the package, and OpenVINO; without Gradio, which a Space installs by itself."""
    try:
        declared = metadata.requires("chexpert-hf") or []
    except metadata.PackageNotFoundError as error:
        raise InputError("chexpert-hf is not installed, so its requirements are not known: pip install it.") from error
    names = {text: re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0].lower() for text in declared}
    plain = [text for text, name in names.items() if "extra ==" not in text and name != "gradio"]
    # OpenVINO is several times as fast as PyTorch on a Space's two cores (README, Speed).
    extra = [text for text, name in names.items() if name == "openvino"]
    return sorted({text.partition(";")[0].strip() for text in (*plain, *extra)})
