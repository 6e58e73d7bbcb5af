"""Folders of synthetic chest radiographs in CheXpert's layout, with the hidden truth and exact masks.

They stand in for CheXpert, which may not be passed on, in tests, examples and fresh installations: a phantom is
nobody's radiograph, and what is in it is known rather than read. They say nothing about how a model does on patients.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, POSITIVE
from chexpert_hf.phantoms.patient import Patient
from chexpert_hf.phantoms.rendering import patient_of, render_study
from chexpert_hf.phantoms.truth import report_cells, sample_truth

_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)
_STUDIES_PER_GROUP = 6
"""Of six studies in a row the last is the fifth patient's second: every fifth patient comes twice."""

_CHANCE_OF_AP = 0.45
_CHANCE_OF_LATERAL = {"PA": 0.5, "AP": 0.1}
"""A third of the studies have a lateral view; bedridden patients, who are imaged AP, rarely."""

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class _Study:
    patient_number: int
    number: int
    patient: Patient
    key: tuple[int, ...]
    truth: set[str]
    cells: dict[str, float | None]
    projections: tuple[str, ...]


@dataclass(frozen=True)
class PhantomFolder:
    """What `write_phantoms` wrote."""

    root: Path
    num_studies: dict[str, int]
    """Split ("train", "valid") -> number of studies."""
    num_images: dict[str, int]


def write_phantoms(
    root: Path,
    *,
    num_studies: int = 200,
    seed: int = 0,
    valid_fraction: float = 0.2,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> PhantomFolder:
    """Writes a data set of phantoms in CheXpert's layout.

    Study i depends on `seed` and i only, and the same arguments give byte-identical files with the same Pillow.
    `train.csv` has uncertain and blank cells as an automatic labeler would leave them, `valid.csv` the truth, as its
    labels are radiologists' in CheXpert. `truth.csv` has the truth of every image, and `masks/` a 1-bit PNG of each
    positive observation that can be pointed at. Labels belong to studies: a lateral view has those of its study, also
    where it does not show the finding.

    Args:
        root: A folder that is empty or does not exist; its name is the first part of every `Path` cell.
        num_studies: In both splits together, at least 1.
        seed: Not negative.
        valid_fraction: Share of the studies in the valid split, in [0, 1); no patient is in both.
        workers: Processes that draw; their number changes nothing but the time.
        progress: Called after each study with the number of studies written so far.

    Raises:
        FileExistsError: If `root` is a file or a folder that is not empty.
        ValueError: If another argument is out of range.
    """
    _check(num_studies, seed, valid_fraction, workers)
    root = Path(root).resolve()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"Phantoms are written into a new or empty folder only; {root} is there and not empty.")
    root.mkdir(parents=True, exist_ok=True)
    first_valid = _first_valid_study(num_studies, valid_fraction)
    rows: dict[str, list[list[str]]] = {"train": [], "valid": []}
    truths: list[list[str]] = []
    studies = [
        (_sample_study(seed, index), "train" if index < first_valid else "valid") for index in range(num_studies)
    ]
    for done, (study, split, views) in enumerate(_write_studies(root, studies, workers), start=1):
        truth = {name: POSITIVE if name in study.truth else NEGATIVE for name in OBSERVATIONS}
        for path, projection in views:
            cells: Mapping[str, float | None] = study.cells if split == "train" else truth
            rows[split].append(_row(f"{root.name}/{path}", study.patient, projection, cells))
            truths.append([f"{root.name}/{path}", *(str(int(value)) for value in truth.values())])
        if progress is not None:
            progress(done)
    for split, lines in rows.items():
        if not lines:
            continue  # a table without rows says nothing; without valid.csv, patients of train.csv are held out
        _write_csv(root / f"{split}.csv", _COLUMNS, lines)
    _write_csv(root / "truth.csv", ("Path", *OBSERVATIONS), truths)
    (root / "README.md").write_text(_readme(root.name, num_studies, seed, valid_fraction), encoding="utf-8")
    return PhantomFolder(
        root=root,
        num_studies={"train": first_valid, "valid": num_studies - first_valid},
        num_images={split: len(lines) for split, lines in rows.items()},
    )


def _check(num_studies: int, seed: int, valid_fraction: float, workers: int) -> None:
    if num_studies < 1:
        raise ValueError(f"Expected at least 1 study, got num_studies={num_studies}.")
    if workers < 1:
        raise ValueError(f"Expected at least 1 worker, got workers={workers}.")
    if seed < 0:
        raise ValueError(f"Expected a seed of at least 0, got {seed}.")
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"Expected valid_fraction in [0, 1), got {valid_fraction}.")


def _patient_and_study(index: int) -> tuple[int, int]:
    """Patient number and study number, both from 1, of the study with this index."""
    group, place = divmod(index, _STUDIES_PER_GROUP)
    last = _STUDIES_PER_GROUP - 1
    return group * last + min(place, last - 1) + 1, 2 if place == last else 1


def _first_valid_study(num_studies: int, valid_fraction: float) -> int:
    first = num_studies - round(valid_fraction * num_studies)
    if 0 < first < num_studies and _patient_and_study(first)[1] == 2:
        # Both studies of a patient go to the same split.
        first -= 1
    return first


def _sample_study(seed: int, index: int) -> _Study:
    patient_number, number = _patient_and_study(index)
    key = (seed, 1, index)
    rng = np.random.default_rng([*key, 5])
    truth = sample_truth(rng)
    frontal = "AP" if rng.random() < _CHANCE_OF_AP else "PA"
    has_lateral = rng.random() < _CHANCE_OF_LATERAL[frontal]
    return _Study(
        patient_number=patient_number,
        number=number,
        patient=patient_of((seed, 2, patient_number)),
        key=key,
        truth=truth,
        cells=report_cells(truth, rng),
        projections=(frontal, "Lateral") if has_lateral else (frontal,),
    )


def _write_studies(
    root: Path, studies: list[tuple[_Study, str]], workers: int
) -> Iterator[tuple[_Study, str, list[tuple[str, str]]]]:
    """Each study and its split, in order, with the path and projection of each view that was written."""
    write = partial(_write_views, root)
    if workers == 1:
        for study, split in studies:
            yield study, split, write((study, split))
        return
    with ProcessPoolExecutor(workers) as pool:
        for (study, split), views in zip(studies, pool.map(write, studies, chunksize=8), strict=True):
            yield study, split, views


def _write_views(root: Path, study_and_split: tuple[_Study, str]) -> list[tuple[str, str]]:
    study, split = study_and_split
    views = []
    folder = f"{split}/patient{study.patient_number:05d}/study{study.number}"
    (root / folder).mkdir(parents=True)
    for number, projection in enumerate(study.projections, start=1):
        phantom = render_study(study.patient, study.key, study.truth - {"No Finding"}, projection)
        name = f"{folder}/view{number}_{'lateral' if projection == 'Lateral' else 'frontal'}"
        Image.fromarray(phantom.image).save(root / f"{name}.jpg", quality=_JPEG_QUALITY)
        masks = root / "masks" / name
        if phantom.masks:
            masks.mkdir(parents=True)
        for observation, mask in phantom.masks.items():
            Image.fromarray(mask).save(masks / f"{observation}.png")
        views.append((f"{name}.jpg", projection))
    return views


def _row(path: str, patient: Patient, projection: str, cells: Mapping[str, float | None]) -> list[str]:
    view = ["Lateral", ""] if projection == "Lateral" else ["Frontal", projection]
    values = ["" if cells[name] is None else str(cells[name]) for name in OBSERVATIONS]
    return [path, patient.sex, str(patient.age), *view, *values]


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _readme(name: str, num_studies: int, seed: int, valid_fraction: float) -> str:
    return f"""# Synthetic chest radiographs

These images are drawn by a program. They show no patient, and results on them say nothing about patients.

Made with `chexpert_hf.phantoms`:

    write_phantoms(Path("{name}"), num_studies={num_studies}, seed={seed}, valid_fraction={valid_fraction})

- `train.csv`, `valid.csv`: CheXpert's columns. Cells: 1.0 positive, 0.0 negative, -1.0 uncertain, blank unmentioned;
  `valid.csv` has the truth.
- `train/`, `valid/`: `patientNNNNN/studyN/viewN_frontal.jpg` and `viewN_lateral.jpg`; no patient is in both.
- `truth.csv`: what is really there, 0 or 1, for every image and observation.
- `masks/`: for every image a folder with one 1-bit PNG per positive observation that the view shows.

Uncertain cells are as frequent as in CheXpert (Irvin et al. 2019, Table 1); prevalences are not CheXpert's.
"""
