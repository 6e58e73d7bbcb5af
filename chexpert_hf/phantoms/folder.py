"""Writes folders of phantoms: synthetic chest radiographs in CheXpert's layout, with true labels and exact masks.

They replace CheXpert, which may not be redistributed, in tests, examples and fresh installations. Results on them say
nothing about patients.
"""

import math
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from chexpert_hf.files import new_folder, text_beside, write_text
from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from chexpert_hf.phantoms.frame import Patient
from chexpert_hf.phantoms.rendering import CHILDREN, implied, render_study

_CHANCE_OF_AP = 0.45
_CHANCE_OF_LATERAL = {"PA": 0.5, "AP": 0.1}  # bedridden patients, who are imaged AP, rarely have one
_FIRST_PATIENT = 900_000  # no data set of real patients has ids as high: they would be taken for the same patients
_JPEG_QUALITY = 90

_UNCERTAIN_STUDIES = (0, 10148, 6597, 4341, 1071, 11571, 23976, 15658, 29377, 2663, 9419, 1771, 484, 898)
UNCERTAIN_RATES = {name: count / 187_641 for name, count in zip(OBSERVATIONS, _UNCERTAIN_STUDIES, strict=True)}
"""Share of studies whose report is uncertain about the observation. Source: Irvin et al. 2019, Table 1."""

UNCERTAIN_ODDS = 2.0
"""Chance that a report is uncertain about a present finding, divided by that for an absent one. An assumption."""

EXPLICIT_NEGATIVES = 0.25
"""Share of the absent findings, uncertain ones aside, that the report denies; others are blank. An assumption."""

PREVALENCES: dict[str, float] = dict.fromkeys(OBSERVATIONS[1:], 0.1) | {
    "Cardiomegaly": 0.12, "Atelectasis": 0.12, "Pleural Effusion": 0.14, "Support Devices": 0.35
}  # fmt: skip
"""Chance of each finding in a study. Higher than CheXpert's, so that a small folder has positives of each."""

_Row = dict[str, str | int | float | None]


def write_phantoms(
    root: Path,
    *,
    num_studies: int = 200,
    seed: int = 0,
    valid_fraction: float = 0.2,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a data set of phantoms in CheXpert's layout, with a README that describes the files.

    Study i depends on `seed` and i only, and the same arguments give byte-identical files with the same Pillow. As in
    CheXpert, `train.csv` has the uncertain and blank cells of an automatic labeler, and `valid.csv` the truth. A
    lateral view has the labels of its study, also those of findings that it does not show.

    Args:
        root: A new or empty folder; its name is the first part of every `Path` cell.
        num_studies: Number of studies in both splits together, at least 1.
        seed: Seed of everything that is random, at least 0.
        valid_fraction: Share of the studies in the valid split, in [0, 1); no patient is in both.
        workers: Number of processes; it does not change the files.
        progress: Called after each study with the number of studies written so far.

    Raises:
        FolderError: If `root` is a file or a folder that is not empty, or cannot be written.
        ValueError: If another argument is out of range.
    """
    for is_valid, message in (
        (num_studies >= 1, f"Expected at least 1 study, got num_studies={num_studies}."),
        (workers >= 1, f"Expected at least 1 worker, got workers={workers}."),
        (seed >= 0, f"Expected a seed of at least 0, got {seed}."),
        (0 <= valid_fraction < 1, f"Expected valid_fraction in [0, 1), got {valid_fraction}."),
    ):
        if not is_valid:
            raise ValueError(message)
    root = Path(root).resolve()
    first_valid = num_studies - round(valid_fraction * num_studies)
    if 0 < first_valid < num_studies and _patient_and_study(first_valid)[1] == 2:
        first_valid -= 1  # both studies of a patient go to the same split
    with new_folder(root) as folder:
        write, tables = partial(_write_study, folder, seed, first_valid), defaultdict[str, list[_Row]](list)
        with ExitStack() as stack:
            studies: Iterable[list[tuple[str, _Row]]] = map(write, range(num_studies))
            if workers > 1:
                pool = ProcessPoolExecutor(workers)
                stack.callback(pool.shutdown, cancel_futures=True)
                with _uninterrupted():
                    studies = pool.map(write, range(num_studies), chunksize=8)
            for done, study in enumerate(studies, start=1):
                for table, row in study:
                    tables[table].append(row)
                if progress is not None:
                    progress(done)
        for table, rows in tables.items():
            pd.DataFrame(rows).to_csv(folder / f"{table}.csv", index=False, lineterminator="\n")
        about = {"name": folder.name, "num_studies": num_studies, "seed": seed, "valid_fraction": valid_fraction}
        write_text(folder / "README.md", text_beside(__file__, "folder_readme.md").format(**about))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Context manager: delay Ctrl-C until the block ends; processes forked within the block ignore Ctrl-C.

    Without it, a process pool that is interrupted while it starts waits for ever.
    """
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C interrupts the main thread only
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


def _patient_and_study(index: int) -> tuple[int, int]:
    """Return patient and study number, both from 1, of the study `index`; every fifth patient has two studies."""
    group, place = divmod(index, 6)  # six studies of five patients; the last two are of the fifth patient
    return 5 * group + min(place, 4) + 1, 2 if place == 5 else 1


def _write_study(root: Path, seed: int, first_valid: int, index: int) -> list[tuple[str, _Row]]:
    """Draw and write the views and masks of the study `index`; return rows for the CSV tables, as pairs (table, row).

    The table is "train", "valid" or "truth". Studies from the index `first_valid` on are in the valid split.
    """
    patient_number, study_number = _patient_and_study(index)
    patient, key = Patient((seed, 2, patient_number)), (seed, 1, index)
    rng = np.random.default_rng([*key, 5])
    positive = sample_truth(rng)
    frontal = "AP" if rng.random() < _CHANCE_OF_AP else "PA"
    has_lateral = rng.random() < _CHANCE_OF_LATERAL[frontal]
    truth = {name: POSITIVE if name in positive else NEGATIVE for name in OBSERVATIONS}
    cells = report_cells(positive, rng)
    split = "train" if index < first_valid else "valid"
    folder = f"{split}/patient{_FIRST_PATIENT + patient_number}/study{study_number}"
    rows: list[tuple[str, _Row]] = []
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
        rows += (split, row), ("truth", {"Path": path, **{name: int(value) for name, value in truth.items()}})
    return rows


def sample_truth(rng: np.random.Generator) -> set[str]:
    """Choose a study's positive observations at random, and add their parents.

    If none is chosen, or only Support Devices, No Finding is added.
    """
    planted = {name for name, prevalence in PREVALENCES.items() if rng.random() < prevalence}
    return implied(planted) if planted - {"Support Devices"} else planted | {"No Finding"}


def report_cells(truth: set[str], rng: np.random.Generator) -> dict[str, float | None]:
    """Imitate an automatic labeler of reports: return observation -> cell of `train.csv`, 1, 0, -1 or None (blank).

    `truth` are the study's positive observations; chance decides on negative, uncertain and blank cells. As in
    CheXpert, a study with No Finding has no uncertain cell except in Support Devices; No Finding is positive or blank.
    Over all studies, the expected share of uncertain cells of an observation is that in `UNCERTAIN_RATES`.
    """
    cells: dict[str, float | None] = {}
    for name in OBSERVATIONS:
        is_uncertain = rng.random() < _chance_of_uncertain(name, name in truth, "No Finding" in truth)
        is_denied = rng.random() < EXPLICIT_NEGATIVES and name != "No Finding"
        certain = POSITIVE if name in truth else NEGATIVE if is_denied else None
        cells[name] = UNCERTAIN if is_uncertain else certain
    return cells


def _chance_of_uncertain(name: str, is_positive: bool, is_normal: bool) -> float:
    if name == "No Finding" or (is_normal and name != "Support Devices"):
        return 0.0
    normal = 0.0 if name == "Support Devices" else _chance_of_none(PREVALENCES.keys() - {"Support Devices"})
    positive = 1 - _chance_of_none({name, *CHILDREN.get(name, ())})
    when_negative = UNCERTAIN_RATES[name] / (UNCERTAIN_ODDS * positive + (1 - positive - normal))
    return UNCERTAIN_ODDS * when_negative if is_positive else when_negative


def _chance_of_none(names: set[str]) -> float:
    """Return the chance that a study has none of these observations."""
    return math.prod(1 - chance for name, chance in PREVALENCES.items() if name in names)
