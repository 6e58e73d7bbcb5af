"""Whose radiographs a model has seen: hashes beside the model, by which figures on the same patients are noticed.

The ids are hashed with a salt of the model's own. This keeps a published folder from being a list of patients, and two
folders from being compared with each other. It does not stop somebody who sets out to know whether a given id is among
them: ids come from a small, known range (CheXpert's are patient00001 to patient65240 or so), and trying them all takes
a second. It protects against reading, not against a determined attack.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from chexpert_hf.errors import InputError

TRAINING_PATIENTS_FILE = "training_patients.json"
SELECTION_PATIENTS_FILE = "selection_patients.json"
CALIBRATION_PATIENTS_FILE = "calibration_patients.json"

_HASH_LENGTH = 16
"""Hexadecimal digits that are kept, 64 bits: two of 65,240 patients share a hash with a probability of 1e-10."""

_PURPOSES = {
    TRAINING_PATIENTS_FILE: "trained on",
    SELECTION_PATIENTS_FILE: "chosen on, among its checkpoints",
    CALIBRATION_PATIENTS_FILE: "calibrated on",
}


class PatientsFileError(InputError):
    """A file of patients' hashes that cannot be read."""


def hash_patients(patients: Iterable[str], salt: str) -> list[str]:
    """Hashes ids of patients.

    Args:
        patients: Such as "patient00001".
        salt: What makes the hashes of one model different from another's.

    Returns:
        One hash of 16 hexadecimal digits per id, in their order.
    """
    return [hashlib.sha256(f"{salt}/{patient}".encode()).hexdigest()[:_HASH_LENGTH] for patient in patients]


def write_patient_hashes(path: Path, patients: Iterable[str]) -> None:
    """Writes the hashes of these patients, each once and in no order of theirs, and a new random salt beside them."""
    salt = secrets.token_hex(16)
    hashes = sorted(hash_patients(set(patients), salt))
    path.write_text(json.dumps({"salt": salt, "hashes": hashes}) + "\n", encoding="utf-8")


def overlapping_patients(path: Path, patients: Iterable[str]) -> set[str]:
    """Those of these patients whose hashes are in a file.

    The same id in another hospital's data is another person, which this cannot know.

    Raises:
        PatientsFileError: If the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        salt, hashes = str(content["salt"]), set(content["hashes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PatientsFileError(f"{path} cannot be read as patients' hashes; expected 'salt' and 'hashes'.") from error
    distinct = sorted(set(patients))
    return {
        patient for patient, digest in zip(distinct, hash_patients(distinct, salt), strict=True) if digest in hashes
    }


def seen_patients(folder: Path, patients: Iterable[str]) -> list[str]:
    """Warnings for figures that a model earns on patients it was trained or calibrated on.

    Args:
        folder: The model's.
        patients: Those of the data that it is evaluated on.

    Returns:
        A line for each of training, choice of checkpoint and calibration that saw some of the patients. None, too, for
        a folder without these files: of such a model nothing is known.

    Raises:
        PatientsFileError: If one of the files is damaged.
    """
    patients = set(patients)
    lines = []
    for file, purpose in _PURPOSES.items():
        shared = overlapping_patients(folder / file, patients) if (folder / file).exists() else set()
        if shared:
            lines.append(
                f"{len(shared):,} of these {len(patients):,} patients are, by their ids, among those that the model "
                f"was {purpose}: figures on them are optimistic."
            )
    return lines
