"""The checksums of a model folder's files."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils import logging

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import ModelFolderError
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.model_files import (
    CHECKSUMS_FILE,
    ChecksumError,
    differences,
    published_files,
    read_checksums,
    renew_checksums,
    verify_checksums,
    write_checksums,
    write_ensemble,
)


def test_a_folder_is_as_it_was_until_a_file_changes(tiny_folder: Path) -> None:
    assert differences(tiny_folder) == []
    write_checksums(tiny_folder)
    assert differences(tiny_folder) == []
    verify_checksums(tiny_folder)
    (tiny_folder / "labels.py").write_text("changed")
    assert differences(tiny_folder) == ["labels.py is not as it was saved"]
    assert differences(tiny_folder, ["config.json"]) == []
    with pytest.raises(
        ChecksumError, match=r"labels\.py is not as it was saved \(checksums\.json\)\. Copy or download"
    ):
        verify_checksums(tiny_folder)


def test_a_changed_bit_is_noticed_where_the_model_is_loaded(tiny_folder: Path) -> None:
    write_checksums(tiny_folder)
    CheXpertClassifier.from_pretrained(tiny_folder)
    weights = tiny_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    for load in (load_model, CheXpertClassifier.from_pretrained):
        with pytest.raises(ChecksumError, match=r"model\.safetensors is not as it was saved"):
            load(tiny_folder)
    (tiny_folder / CHECKSUMS_FILE).unlink()
    load_model(tiny_folder)  # nobody can tell


def test_weights_that_were_saved_in_parts_later_are_noticed_where_the_model_is_loaded(tiny_folder: Path) -> None:
    write_checksums(tiny_folder)
    model = load_model(tiny_folder)
    (tiny_folder / "model.safetensors").unlink()
    model.save_pretrained(tiny_folder, max_shard_size="10KB")
    with pytest.raises(ChecksumError, match=r"model\.safetensors is missing"):
        load_model(tiny_folder)


def test_the_file_of_sums_has_one_form_only(tiny_folder: Path) -> None:
    write_checksums(tiny_folder)
    path = tiny_folder / CHECKSUMS_FILE
    content = path.read_text()
    for changed in (content + " ", content.replace("{", "{ ", 1), content[:-3], "", "[]", "\udcff"):
        path.write_text(changed, errors="surrogateescape")
        with pytest.raises(ChecksumError, match=r"checksums\.json is damaged"):
            read_checksums(tiny_folder)


def test_renewing_a_file_leaves_the_others_as_they_were(tiny_folder: Path) -> None:
    renew_checksums(tiny_folder, ["config.json"])
    assert not (tiny_folder / CHECKSUMS_FILE).exists()
    write_checksums(tiny_folder)
    (tiny_folder / "labels.py").write_text("damaged")
    (tiny_folder / "gate.safetensors").write_bytes(b"new")
    renew_checksums(tiny_folder, ["gate.safetensors"])
    assert differences(tiny_folder) == ["labels.py is not as it was saved"]
    (tiny_folder / "gate.safetensors").unlink()
    assert "gate.safetensors is missing" in differences(tiny_folder)
    renew_checksums(tiny_folder, ["gate.safetensors"])
    assert differences(tiny_folder) == ["labels.py is not as it was saved"]


def test_what_is_meant_for_others_is_listed_by_name(tiny_folder: Path) -> None:
    for name in (
        "training_patients.json",
        "optimizer.pt",
        "notes.txt",
        "history.json",
        "onnx/model.onnx",
        "onnx/a.pkl",
    ):
        (tiny_folder / name).parent.mkdir(exist_ok=True)
        (tiny_folder / name).write_bytes(b"x")
    (tiny_folder / "deep" / "onnx").mkdir(parents=True)
    (tiny_folder / "deep" / "onnx" / "model.onnx").write_bytes(b"x")
    write_checksums(tiny_folder)
    assert set(published_files(tiny_folder)) - {"onnx/model.onnx"} == {
        "config.json",
        "backbones_chexpert.py",
        "configuration_chexpert.py",
        "image_processing_chexpert.py",
        "labels.py",
        "model.safetensors",
        "modeling_chexpert.py",
        "preprocessor_config.json",
    }
    checksums = json.loads((tiny_folder / CHECKSUMS_FILE).read_text())["sha256"]
    assert {"training_patients.json", "history.json", "onnx/model.onnx"} < checksums.keys()
    assert not {"optimizer.pt", "notes.txt", "onnx/a.pkl"} & checksums.keys()


def test_threads_that_load_at_the_same_time_leave_the_verbosity_of_transformers_as_it_was(tiny_folder: Path) -> None:
    before = logging.get_verbosity()
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(load_model, [tiny_folder] * 16))) == 16
    assert logging.get_verbosity() == before


def test_where_one_model_is_expected_an_ensemble_is_refused_with_its_members(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "both" / "one")
    write_ensemble(tmp_path / "both", [tmp_path / "both" / "one"])
    with pytest.raises(ModelFolderError, match=r"both is an ensemble, and one model is expected here: name a member, "):
        load_model(tmp_path / "both")
