"""Hashed ids of the patients that a model has seen, stored beside it to warn of metrics on the same patients.

Each file has a random salt; a model that is made from another model keeps the salt and the patients of that model.
So a shared folder is no list of patients, and folders of unrelated models cannot be compared with each other. The
hashes do not stop an attacker: ids come from a small, known range (CheXpert's are patient00001 to patient65240 or so),
and trying them all takes a second.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from chexpert_hf.errors import InputError
from chexpert_hf.files import write_text

TRAINING_PATIENTS_FILE = "training_patients.json"
SELECTION_PATIENTS_FILE = "selection_patients.json"
CALIBRATION_PATIENTS_FILE = "calibration_patients.json"

_HASH_LENGTH = 16  # hexadecimal digits, 64 bits: two of 65,240 patients share a hash with a probability of 1e-10
PATIENT_FILES = {
    TRAINING_PATIENTS_FILE: "train the model",
    SELECTION_PATIENTS_FILE: "choose the model's checkpoint",
    CALIBRATION_PATIENTS_FILE: "calibrate the model",
}
"""File of hashed ids -> what its patients were used for."""


class PatientsFileError(InputError):
    """A file of hashed patient ids that is missing or damaged."""


def hash_patients(patients: Iterable[str], salt: str) -> list[str]:
    """Return a hash of 16 hexadecimal digits for each id, such as "patient00001", in the same order."""
    return [hashlib.sha256(f"{salt}/{patient}".encode()).hexdigest()[:_HASH_LENGTH] for patient in patients]


def _names_of(patient: str) -> set[str]:
    """Return a patient's id and, if it begins with a data set's name as in "NIH/00000001", also "00000001"."""
    return {patient, patient.partition("/")[2] or patient}


def write_patient_hashes(path: Path, patients: Iterable[str], earlier: Path | None = None) -> None:
    """Write the hashed ids of these patients, sorted and without duplicates, with a random salt.

    The patients are those that a model has seen. If it was made from another model, `earlier` is that model's file: its
    salt and its hashes are kept. Raises PatientsFileError if `earlier` is damaged.
    """
    salt, hashes = secrets.token_hex(16), set[str]()
    if earlier is not None and earlier.is_file():
        salt, hashes = _read(earlier)
    names = {name for patient in patients for name in _names_of(patient)}
    write_text(path, json.dumps({"salt": salt, "hashes": sorted({*hashes, *hash_patients(names, salt)})}) + "\n")


def overlapping_patients(path: Path, patients: Iterable[str]) -> set[str]:
    """Return those of `patients` whose hashes are in a file; PatientsFileError if it is missing or damaged."""
    salt, hashes = _read(path)
    return {patient for patient in set(patients) if not hashes.isdisjoint(hash_patients(_names_of(patient), salt))}


def _read(path: Path) -> tuple[str, set[str]]:
    """Return the salt and the hashes in a file; PatientsFileError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["salt"]), set(content["hashes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PatientsFileError(f"{path} cannot be read as patients' hashes; expected 'salt' and 'hashes'.") from error


def seen_patients(folder: Path, patients: Iterable[str]) -> list[str]:
    """Return warnings that a folder's model was trained, selected or calibrated on some of these patients.

    Patients are found in the folder's files of hashed ids. A missing file gives no warning, a damaged file raises
    PatientsFileError. Only ids are compared: the same id in another hospital's data gives a warning, too.
    """
    patients = set(patients)
    return [
        f"by their ids, {len(shared):,} of these {len(patients):,} patients were used to {purpose}; metrics on them "
        "are optimistic."
        for file, purpose in PATIENT_FILES.items()
        if (folder / file).exists() and (shared := overlapping_patients(folder / file, patients))
    ]
