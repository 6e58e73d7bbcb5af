import hashlib
import json

import pytest

from chexpert_hf.evaluation.patients import (
    CALIBRATION_PATIENTS_FILE,
    SELECTION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    PatientsFileError,
    hash_patients,
    overlapping_patients,
    seen_patients,
    write_patient_hashes,
)

PATIENTS = [f"patient{number:05}" for number in range(1, 51)]


def test_the_file_holds_no_id_in_clear_and_not_their_order(tmp_path):
    write_patient_hashes(tmp_path / "a.json", [*reversed(PATIENTS), *PATIENTS])
    text = (tmp_path / "a.json").read_text()
    content = json.loads(text)
    assert not any(patient in text or patient.removeprefix("patient") + '"' in text for patient in PATIENTS)
    assert content["hashes"] == sorted(content["hashes"])
    assert len(content["hashes"]) == 50
    assert sorted(hash_patients(PATIENTS, content["salt"])) == content["hashes"]


def test_a_hash_is_the_beginning_of_sha256_of_salt_and_id():
    expected = hashlib.sha256(b"salt/patient00001").hexdigest()[:16]
    assert hash_patients(["patient00001", "patient00002"], "salt")[0] == expected
    assert hash_patients(["patient00001"], "other") != [expected]


def test_two_models_of_the_same_patients_share_no_hash(tmp_path):
    write_patient_hashes(tmp_path / "a.json", PATIENTS)
    write_patient_hashes(tmp_path / "b.json", PATIENTS)
    one, other = (set(json.loads((tmp_path / name).read_text())["hashes"]) for name in ("a.json", "b.json"))
    assert not one & other


def test_overlap_is_found_patient_by_patient(tmp_path):
    write_patient_hashes(tmp_path / "a.json", PATIENTS)
    others = ["patient00050", "patient00051", "patient00007", "patient00007", "patient7"]
    assert overlapping_patients(tmp_path / "a.json", others) == {"patient00007", "patient00050"}
    assert overlapping_patients(tmp_path / "a.json", ["patient00051"]) == set()


def test_a_model_made_from_another_one_has_seen_its_patients_too(tmp_path):
    write_patient_hashes(tmp_path / "a.json", PATIENTS[:5])
    write_patient_hashes(tmp_path / "b.json", PATIENTS[10:15], tmp_path / "a.json")
    write_patient_hashes(tmp_path / "c.json", PATIENTS[10:20], tmp_path / "b.json")
    assert overlapping_patients(tmp_path / "c.json", PATIENTS) == {*PATIENTS[:5], *PATIENTS[10:20]}
    assert len(json.loads((tmp_path / "c.json").read_text())["hashes"]) == 15
    write_patient_hashes(tmp_path / "d.json", PATIENTS[:1], tmp_path / "missing.json")
    assert overlapping_patients(tmp_path / "d.json", PATIENTS) == {PATIENTS[0]}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"salt": "x"}', '{"salt": "x", "hashes": 3}'])
def test_a_file_that_is_missing_or_damaged_is_an_error_and_not_no_overlap(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(PatientsFileError, match=r"a\.json cannot be read as patients' hashes"):
        overlapping_patients(tmp_path / "a.json", PATIENTS)


def test_a_model_that_saw_the_patients_is_warned_about(tmp_path):
    assert seen_patients(tmp_path, PATIENTS) == []
    write_patient_hashes(tmp_path / TRAINING_PATIENTS_FILE, PATIENTS[:3])
    write_patient_hashes(tmp_path / CALIBRATION_PATIENTS_FILE, PATIENTS[40:])
    write_patient_hashes(tmp_path / SELECTION_PATIENTS_FILE, PATIENTS[20:24])
    uses = ((3, "train the model"), (4, "choose the model's checkpoint"), (10, "calibrate the model"))
    assert seen_patients(tmp_path, PATIENTS * 2) == [
        f"by their ids, {number} of these 50 patients were used to {use}; metrics on them are optimistic."
        for number, use in uses
    ]
    assert seen_patients(tmp_path, PATIENTS[10:20]) == []


@pytest.mark.parametrize(("written", "asked"), [("NIH/0001", "0001"), ("0001", "NIH/0001"), ("NIH/0001", "NIH/0001")])
def test_a_patient_is_known_with_and_without_the_name_of_the_data_set_in_front(tmp_path, written, asked):
    write_patient_hashes(tmp_path / "a.json", [written])
    assert overlapping_patients(tmp_path / "a.json", [asked, "NIH/0002", "0002"]) == {asked}
