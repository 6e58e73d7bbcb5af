"""Folders of synthetic chest radiographs in CheXpert's layout, with the hidden truth and exact masks.

They replace CheXpert, which may not be redistributed, in tests, examples and fresh installations: a phantom is nobody's
radiograph, and its findings are known rather than read. They say nothing about how a model does on patients.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, POSITIVE
from chexpert_hf.phantoms.rendering import patient_of, render_study
from chexpert_hf.phantoms.truth import report_cells, sample_truth

_STUDIES_PER_GROUP = 6
"""Of six studies in a row the last is the fifth patient's second: every fifth patient comes twice."""

_CHANCE_OF_AP = 0.45
_CHANCE_OF_LATERAL = {"PA": 0.5, "AP": 0.1}
"""A third of the studies have a lateral view; bedridden patients, who are imaged AP, rarely."""

_JPEG_QUALITY = 90


_Row = dict[str, str | int | float | None]
_View = tuple[str, _Row, _Row]  # split, row of its table, row of truth.csv


def write_phantoms(
    root: Path,
    *,
    num_studies: int = 200,
    seed: int = 0,
    valid_fraction: float = 0.2,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
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
    for is_wrong, message in (
        (num_studies < 1, f"Expected at least 1 study, got num_studies={num_studies}."),
        (workers < 1, f"Expected at least 1 worker, got workers={workers}."),
        (seed < 0, f"Expected a seed of at least 0, got {seed}."),
        (not 0 <= valid_fraction < 1, f"Expected valid_fraction in [0, 1), got {valid_fraction}."),
    ):
        if is_wrong:
            raise ValueError(message)
    root = Path(root).resolve()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"Phantoms are written into a new or empty folder only; {root} is there and not empty.")
    root.mkdir(parents=True, exist_ok=True)
    first_valid = num_studies - round(valid_fraction * num_studies)
    if 0 < first_valid < num_studies and _patient_and_study(first_valid)[1] == 2:
        first_valid -= 1  # both studies of a patient go to the same split
    write, views = partial(_write_study, root, seed, first_valid), list[_View]()
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        studies = pool.map(write, range(num_studies), chunksize=8) if pool else map(write, range(num_studies))
        for done, study in enumerate(studies, start=1):
            views += study
            if progress is not None:
                progress(done)
    for split in ("train", "valid"):
        # A table without rows says nothing; without valid.csv, patients of train.csv are held out.
        if rows := [row for where, row, _ in views if where == split]:
            pd.DataFrame(rows).to_csv(root / f"{split}.csv", index=False, lineterminator="\n")
    pd.DataFrame([truth for _, _, truth in views]).to_csv(root / "truth.csv", index=False, lineterminator="\n")
    (root / "README.md").write_text(_readme(root.name, num_studies, seed, valid_fraction), encoding="utf-8")


def _patient_and_study(index: int) -> tuple[int, int]:
    """Patient number and study number, both from 1, of the study with this index."""
    group, place = divmod(index, _STUDIES_PER_GROUP)
    last = _STUDIES_PER_GROUP - 1
    return group * last + min(place, last - 1) + 1, 2 if place == last else 1


def _write_study(root: Path, seed: int, first_valid: int, index: int) -> list[_View]:
    """Draws and writes the views of a study with their masks."""
    patient_number, study_number = _patient_and_study(index)
    patient, key = patient_of((seed, 2, patient_number)), (seed, 1, index)
    rng = np.random.default_rng([*key, 5])
    positive = sample_truth(rng)
    frontal = "AP" if rng.random() < _CHANCE_OF_AP else "PA"
    has_lateral = rng.random() < _CHANCE_OF_LATERAL[frontal]
    truth = {name: POSITIVE if name in positive else NEGATIVE for name in OBSERVATIONS}
    cells = report_cells(positive, rng)
    split = "train" if index < first_valid else "valid"
    folder, views = f"{split}/patient{patient_number:05d}/study{study_number}", list[_View]()
    (root / folder).mkdir(parents=True)
    for number, projection in enumerate((frontal, "Lateral") if has_lateral else (frontal,), start=1):
        phantom = render_study(patient, key, positive - {"No Finding"}, projection)
        view = "Lateral" if projection == "Lateral" else "Frontal"
        name = f"{folder}/view{number}_{view.lower()}"
        Image.fromarray(phantom.image).save(root / f"{name}.jpg", quality=_JPEG_QUALITY)
        for observation, mask in phantom.masks.items():
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / name / f"{observation}.png")
        path = f"{root.name}/{name}.jpg"
        row: _Row = {"Path": path, "Sex": patient.sex, "Age": patient.age, "Frontal/Lateral": view}
        row["AP/PA"] = projection if view == "Frontal" else None
        row.update(cells if split == "train" else truth)
        views.append((split, row, {"Path": path, **{name: int(value) for name, value in truth.items()}}))
    return views


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
