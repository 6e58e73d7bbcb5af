"""A complete model folder, a client, and the stand-in Hub that it talks to."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi, constants

from chexpert_hf import CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.evaluation.patients import TRAINING_PATIENTS_FILE, write_patient_hashes
from chexpert_hf.evaluation.report.reporting import evaluate_predictions
from chexpert_hf.files import sha256_of
from chexpert_hf.models.graph_files import GraphRecord, fingerprint, hashes, write_records
from chexpert_hf.models.model_files import write_checksums
from chexpert_hf.publishing.model_folder import assess_predictions, save_trained_folder
from chexpert_hf.training.recipe import Recipe

from .stand_in import TOKEN, Hub, running_hub

DATA = {
    "name": "CheXpert-v1.0-small",
    "train": {"images": 1200, "studies": 1100, "patients": 900, "positives": {"Edema": 30, "Fracture": 0}},
    "valid": {"images": 120, "studies": 120, "patients": 60},
}


def predictions(observations: tuple[str, ...]) -> tuple[np.ndarray, datasets.Dataset]:
    """Random probabilities that know a little, and the split that they are of."""
    rng = np.random.default_rng(0)
    truth = (rng.random((120, len(observations))) < 0.4).astype(float)
    truth[:, 0] = 0  # cannot be judged
    columns = {
        "labels": truth.tolist(),
        "study": [f"study{row}" for row in range(120)],
        "patient": [f"patient{row // 2}" for row in range(120)],
        "sex": ["Female" if row % 4 < 2 else "Male" for row in range(120)],
        "age": [30 + row // 2 for row in range(120)],
        "projection": ["AP", "PA"] * 60,
        "is_frontal": [True] * 120,
    }
    noise = rng.random(truth.shape)
    return 0.6 * noise + 0.4 * truth, datasets.Dataset.from_dict(columns)


@pytest.fixture(scope="session")
def saved_folder(shared_tiny_model: CheXpertForImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a run leaves it, with an exported graph, and with what must never be sent. Not to be changed."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-run"
    model = copy.deepcopy(shared_tiny_model)
    probabilities, split = predictions(model.config.observations)
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    recipe = Recipe(init="/home/somebody/models/base", policy="u-ones")
    save_trained_folder(
        folder,
        model,
        processor,
        recipe=recipe.to_dict(),
        data=DATA,
        evaluation=evaluate_predictions(probabilities, split, model.config),
        best_step=12,
        assessment=assess_predictions(probabilities, split, model.config, replicates=50),
    )
    recipe.save(folder / "recipe.yaml")
    write_patient_hashes(folder / TRAINING_PATIENTS_FILE, ["patient1"])
    (folder / "history.json").write_text('[{"path": "/home/somebody"}]')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    checkpoint = folder / "checkpoints" / "checkpoint-12"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"a graph" * 99)
    graph = GraphRecord(
        runtime="onnx",
        precision="fp32",
        model=fingerprint(model),
        input_size=(64, 64),
        sha256=hashes(folder, ["onnx/model.onnx"]),
        weights_sha256=sha256_of(folder / "model.safetensors"),
    )
    write_records(folder, {"onnx/model.onnx": graph})
    write_checksums(folder)
    return folder


@pytest.fixture
def model_folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A copy of `saved_folder` without the stray pickle."""
    copied = shutil.copytree(saved_folder, tmp_path / "tiny-run")
    (copied / "training_args.bin").unlink()
    return copied


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever HF_HUB_OFFLINE says: these tests talk to this machine only."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it repeats a request
    with running_hub() as running:
        yield running


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """A client with a token that the stand-in knows."""
    return HfApi(endpoint=hub.url, token=TOKEN)
