"""A Space runs from its own folder alone, with one version of one model."""

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import gradio
import httpx
import pytest
import yaml
from gradio_client import Client, handle_file
from huggingface_hub import HfApi

import chexpert_hf
from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.errors import InputError
from chexpert_hf.models.repositories import HubError
from chexpert_hf.publishing.model_folder import refresh_folder
from chexpert_hf.publishing.publish import push_space, requirements, stage_space

from ..conftest import TINY
from .stand_in import Hub

SHA = "0123456789" * 4


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose commit is given, which takes no network."""
    folder = tmp_path_factory.mktemp("space") / "files"
    stage_space("me/tiny", "me/page", folder, revision=SHA, api=HfApi(endpoint="http://127.0.0.1:9"))
    return folder


def front_matter(folder: Path) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return values


def test_the_model_is_pinned_and_named(staged: Path) -> None:
    assert json.loads((staged / "model.json").read_text()) == {"model": "me/tiny", "revision": SHA}
    assert front_matter(staged)["models"] == ["me/tiny"]


def test_the_space_asks_for_the_gradio_that_is_tested(staged: Path) -> None:
    values = front_matter(staged)
    assert values["sdk"] == "gradio"
    assert values["sdk_version"] == gradio.__version__
    assert values["app_file"] == "app.py"


def test_the_package_goes_along_without_its_model_and_without_what_was_compiled(staged: Path) -> None:
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert {"app.py", "requirements.txt", "examples/RG1.jpg", "examples/README.md", "chexpert_hf/app/demo.py"} <= names
    assert any(name.startswith("examples/drawings/") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".safetensors"))]
    home = Path(chexpert_hf.__file__).parent
    source = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    left = ("nih/", "publishing/space/")
    needed = {name for name in source if "__pycache__" not in name and not name.startswith(left)}
    assert needed == {name.removeprefix("chexpert_hf/") for name in names if name.startswith("chexpert_hf/")}
    assert sum(path.stat().st_size for path in staged.rglob("*") if path.is_file()) < 3_000_000


def test_a_models_space_has_no_drawing_of_what_the_model_has_no_output_for(model_folder: Path, tmp_path: Path) -> None:
    names = {0: "Edema", 1: "TB"}
    CheXpertForImageClassification(CheXpertConfig(**TINY, id2label=names)).save_pretrained(model_folder)
    refresh_folder(model_folder)
    stage_space(str(model_folder), "me/page", tmp_path / "page")
    assert [path.stem for path in (tmp_path / "page" / "examples" / "drawings").iterdir()] == ["Edema"]
    assert (tmp_path / "page" / "examples" / "RG1.jpg").is_file()


def test_requirements_are_those_of_the_package_openvino_and_timm_but_not_gradio(staged: Path) -> None:
    lines = (staged / "requirements.txt").read_text().splitlines()
    assert lines == requirements()
    names = {re.split("[<>=]", line)[0] for line in lines}
    assert {"torch", "transformers", "openvino", "timm", "pydicom"} <= names
    assert not names & {"gradio", "pytest", "nncf", "chexpert-hf"}


def test_a_space_is_made_and_brought_up_to_date_in_one_commit_each(hub: Hub, api: HfApi) -> None:
    model = hub.add("me/tiny")
    first = push_space("me/tiny", "me/page", private=True, api=api)
    space = hub.repo("me/page", "space")
    assert space.private
    assert json.loads(space.files["model.json"])["revision"] == model.refs["main"]
    assert first.commit == space.refs["main"]
    stale = {"chexpert_hf/gone.py": b"old", "examples/old.jpg": b"old", "notes.md": b"mine"}
    space.commit({**space.files, **stale}, "by hand")
    model.commit({}, "better weights")
    push_space("me/tiny", "me/page", api=api)
    assert len(space.messages) == 4
    assert json.loads(space.files["model.json"])["revision"] == model.refs["main"]
    assert not {"chexpert_hf/gone.py", "examples/old.jpg"} & space.files.keys()
    assert space.files["notes.md"] == b"mine"


def test_a_model_that_cannot_be_seen_or_a_folder_in_use_is_refused(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="me/none: there is no such folder, and no such repository"):
        stage_space("me/none", "me/page", tmp_path / "files", api=api)
    hub.add("me/tiny")
    with pytest.raises(HubError, match="me/tiny: there is no such branch, tag or commit"):
        stage_space("me/tiny", "me/page", tmp_path / "files", revision="v9", api=api)
    (tmp_path / "used.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; expected a new folder"):
        stage_space("me/tiny", "me/page", tmp_path, revision=SHA)


@pytest.mark.slow
def test_the_folder_alone_answers_without_the_package_being_installed(
    model_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path / "space"
    staged = dict(stage_space(str(model_folder), "me/page", folder))
    assert "model/model.safetensors" in staged
    assert "model.json" not in staged
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.lower().replace("-", "_").startswith("chexpert_hf"):  # neither its code nor its metadata
            (libraries / installed.name).symlink_to(installed)
    environment = {
        **os.environ,
        "PYTHONPATH": str(libraries),  # with -S: nothing else that is installed
        "GRADIO_SERVER_PORT": str(port),
        "CHEXPERT_HF_RUNTIME": "torch",
        "CHEXPERT_HF_PRECISION": "fp32",
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-S", "app.py"], cwd=folder, env=environment, stdout=file, stderr=file
        )
    try:
        url = f"http://127.0.0.1:{port}/"
        wait_for(url, server, log)
        example = folder / "examples" / "RG1.jpg"
        answer = Client(url, verbose=False).predict(handle_file(example), api_name="/predict")
    finally:
        server.terminate()
        server.wait(timeout=30)
    expected = CheXpertClassifier.from_pretrained(model_folder).predict(example).probabilities
    scores = {name: score["probability"] for name, score in answer["observations"].items()}
    assert scores == pytest.approx(expected, abs=1e-5)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the Space did not start: {log.read_text()[-2000:]}")
