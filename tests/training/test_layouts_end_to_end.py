"""Training, evaluation, scoring and the gate on data sets in the folders of MIMIC-CXR-JPG, RSNA and a CSV file."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import render_phantom
from tests.commands import run as run_command
from tests.dicom_files import dicom_of

from ..conftest import TINY

NUM = 44
"""Radiographs; every second one has an opacity."""


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    images = [render_phantom(n, ["Lung Opacity"] if n % 2 else [], projection="PA").image for n in range(NUM)]
    return [np.asarray(Image.fromarray(image).resize((96, 96))) for image in images]


def encoded(image: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def mimic(folder: Path, films: Sequence[np.ndarray]) -> None:
    ids = [(str(10_000_000 + n), str(50_000_000 + n), f"{n:08x}-aaaa") for n in range(NUM)]
    for (patient, study, image), film in zip(ids, films, strict=True):
        write(folder / f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg", encoded(film, "JPEG"))
    columns = ["subject_id", "study_id", "dicom_id"]
    write_table(folder / "mimic-cxr-2.0.0-metadata.csv", [*columns, "ViewPosition"], [(*each, "PA") for each in ids])
    splits = [(*each, "train" if n < 30 else "validate") for n, each in enumerate(ids)]
    write_table(folder / "mimic-cxr-2.0.0-split.csv", [*columns, "split"], splits)
    labels = [
        (*each[:2], *(n % 2 if name == "Lung Opacity" else "" for name in OBSERVATIONS)) for n, each in enumerate(ids)
    ]
    write_table(folder / "mimic-cxr-2.0.0-chexpert.csv", [*columns[:2], *OBSERVATIONS], labels)


def rsna(folder: Path, films: Sequence[np.ndarray]) -> None:
    for number, film in enumerate(films):
        write(folder / f"stage_2_train_images/{number:08x}-bbbb.dcm", dicom_of(film))
    header = ["patientId", "x", "y", "width", "height", "Target"]
    rows = [(f"{n:08x}-bbbb", *((10, 10, 20, 20, 1) if n % 2 else ("", "", "", "", 0))) for n in range(NUM)]
    write_table(folder / "stage_2_train_labels.csv", header, rows)


def table(folder: Path, films: Sequence[np.ndarray]) -> None:
    for number, film in enumerate(films):
        write(folder / f"{number}.png", encoded(film, "PNG"))
    rows = [(f"{n}.png", f"p{n}", n % 2, 1 - n % 2) for n in range(NUM)]
    write_table(folder / "labels.csv", ["image", "patient", "TB", "Normal"], rows)


@pytest.mark.parametrize(
    ("make", "observations", "labels_by"),
    [
        (mimic, OBSERVATIONS, "text-mined labels"),
        (rsna, ("Lung Opacity",), "one to three radiologists"),
        (table, ("TB", "Normal"), "labels of the data set"),
    ],
)
@pytest.mark.slow
def test_commands_run_on_a_layout(
    make: Callable[..., None],
    observations: tuple[str, ...],
    labels_by: str,
    films: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, model = tmp_path / "films", tmp_path / "model"
    data.mkdir()
    make(data, films)
    recipe = {"init": "random", "architecture": TINY, "num_channels": 1, "image_size": 32, "epochs": 1, "workers": 0}
    recipe |= {"valid_fraction": 0.3, "batch_size": 16, "num_patients": 18}  # too few for a gate, which takes seconds
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = run_command(monkeypatch, capsys, *arguments, "--json")
        assert code == 0, err
        result: dict[str, Any] = json.loads(out)
        return result

    trained = run("train", data, "--recipe", tmp_path / "recipe.yaml", "--output", model)
    assert [each["observation"] for each in trained["observations"]] == list(observations)
    assert labels_by in (model / "README.md").read_text()
    report = run("evaluate", data, "--model", model, "--output", tmp_path / "report", "--replicates", "100")
    assert report["reference_standard"] == labels_by
    if make is rsna:
        assert run("gate", data, "--model", model)["n"] >= 20
    run("predict", data, "--model", model, "--output", tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == NUM
    assert set(observations) <= set(scores.columns)
    assert scores[list(observations)].notna().all(axis=None)
