"""`check` finds whatever is not as it was saved."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
from chexpert_hf.models.graph_files import RuntimeName
from chexpert_hf.models.model_files import RUN_FOLDERS, write_checksums
from chexpert_hf.publishing import check
from chexpert_hf.publishing.check import FAILED, OK, SKIPPED, CheckReport, check_folder


@pytest.fixture(autouse=True)
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other runtimes have a test of their own."""
    monkeypatch.setattr(check, "PACKAGES", {RuntimeName.TORCH: "torch"})


def failed(report: CheckReport) -> dict[str, str]:
    return {line.subject: line.text for line in report.lines if line.result == FAILED}


def test_a_folder_as_it_was_saved_is_ok(model_folder: Path) -> None:
    report = check_folder(model_folder)
    assert report.is_ok
    assert [line.subject for line in report.lines] == [
        "files",
        "checksums",
        "code",
        "card",
        "graphs",
        "model",
        "scores, torch fp32",
    ]
    assert {line.result for line in report.lines} == {OK}
    difference = re.fullmatch(r"within (\S+) of reference.json \(allowed 0.0001\)", report.lines[-1].text)
    assert difference is not None
    assert float(difference[1]) < 1e-6  # float32 rounds by how weights lie in memory


def test_one_flipped_bit_in_any_file_is_found(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PACKAGES", {})
    files = [path for path in sorted(model_folder.rglob("*")) if path.is_file() and "checkpoints" not in path.parts]
    assert len(files) > 14
    for path in files:
        content = path.read_bytes()
        for place, bit in ((0, 1), (len(content) // 2, 1), (len(content) // 3, 128), (len(content) - 1, 32)):
            flipped = bytearray(content)
            flipped[place] ^= bit
            path.write_bytes(flipped)
            found = failed(check_folder(model_folder))
            assert "checksums" in found, f"{path.name} at {place}"
            # A changed sum is found as a file that differs from it.
            assert path.name in found["checksums"] or path.name == "checksums.json"
            path.write_bytes(content)
    assert check_folder(model_folder).is_ok


def test_a_file_that_is_gone_or_new_is_found(model_folder: Path) -> None:
    (model_folder / "evaluation.json").unlink()
    (model_folder / "gate.safetensors").write_bytes(b"a gate of somebody's")
    text = failed(check_folder(model_folder))["checksums"]
    assert "evaluation.json is missing" in text
    assert "gate.safetensors has no checksum" in text


def test_weights_that_score_otherwise_are_found_even_with_fitting_sums(model_folder: Path) -> None:
    weights = load_file(model_folder / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"] + 0.1
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    write_checksums(model_folder)
    found = failed(check_folder(model_folder))
    assert "when it was saved (0.0001 allowed)" in found["scores, torch fp32"]
    assert "made from other weights" in found["graphs"]
    weights["classifier.bias"][0] = torch.nan
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    write_checksums(model_folder)
    found = failed(check_folder(model_folder))
    assert "classifier.bias holds values that are not finite" in found["model"]
    assert "scores, torch fp32" in found


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.pth", "may run code"), ("extra/data.pkl", "may run code"), ("hook.py", "code that belongs to no model")],
)
def test_what_may_run_code_is_found(model_folder: Path, name: str, message: str) -> None:
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_bytes(b"x")
    assert message in failed(check_folder(model_folder))["files"]


@pytest.mark.parametrize("name", RUN_FOLDERS)
def test_the_folders_of_a_runs_stages_are_no_part_of_the_model(model_folder: Path, name: str) -> None:
    state = model_folder / name / "stage-1" / "optimizer.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_bytes(b"x")
    assert check_folder(model_folder).is_ok


def test_a_run_may_keep_its_checkpoints_and_notes_beside_the_model(model_folder: Path) -> None:
    assert (model_folder / "checkpoints" / "checkpoint-12" / "optimizer.pt").exists()
    (model_folder / "notes.txt").write_text("mine")
    report = check_folder(model_folder)
    assert report.is_ok
    assert "notes.txt is no part of it" in report.lines[0].text


def test_code_of_another_version_is_said_and_is_no_fault(model_folder: Path) -> None:
    with (model_folder / "labels.py").open("a") as file:
        file.write("# another version\n")
    write_checksums(model_folder)
    report = check_folder(model_folder)
    assert report.is_ok
    assert "labels.py of another version than chexpert-hf" in next(x for x in report.lines if x.subject == "code").text


def test_a_folder_with_its_backbone_in_the_modeling_file_is_complete_and_one_that_needs_another_file_is_not(
    model_folder: Path,
) -> None:
    (model_folder / "backbones_chexpert.py").unlink()
    write_checksums(model_folder)
    assert failed(check_folder(model_folder))["code"] == "backbones_chexpert.py is missing"
    modeling = model_folder / "modeling_chexpert.py"
    modeling.write_text(modeling.read_text().replace("from .backbones_chexpert import", "from torchvision import"))
    write_checksums(model_folder)
    assert (
        "modeling_chexpert.py of another version"
        in {line.subject: line.text for line in check_folder(model_folder).lines}["code"]
    )


def test_a_phantom_that_is_drawn_otherwise_is_not_taken_for_a_change_of_the_model(model_folder: Path) -> None:
    reference = json.loads((model_folder / "reference.json").read_text())
    reference["phantom"]["seed"] = 1
    (model_folder / "reference.json").write_text(json.dumps(reference))
    write_checksums(model_folder)
    assert "draws the phantom of reference.json differently" in failed(check_folder(model_folder))["scores, torch fp32"]


def test_other_runtimes_are_checked_where_they_are_installed(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(check, "PACKAGES", {RuntimeName.ONNX: "onnxruntime"})
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))
    assert "the exported onnx/model.onnx cannot be used" in failed(check_folder(model_folder))["scores, onnx fp32"]
    (model_folder / "onnx" / "model.onnx").unlink()
    (model_folder / "export.json").unlink()
    write_checksums(model_folder)
    line = check_folder(model_folder).lines[-1]
    assert (line.subject, line.result) == ("scores, onnx fp32", OK)


def test_a_runtime_that_does_not_take_the_model_is_left_out(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PACKAGES", {RuntimeName.OPENVINO: "torch"})

    load = CheXpertClassifier.from_pretrained

    def refuse(model: Path, **settings: str) -> CheXpertClassifier:
        if settings.get("runtime", "torch") != "torch":
            raise InputError("no such library")
        return load(model, **settings)

    monkeypatch.setattr(check.CheXpertClassifier, "from_pretrained", refuse)
    line = check_folder(model_folder).lines[-1]
    assert (line.result, line.text) == (SKIPPED, "no such library")


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json; expected a model folder"):
        check_folder(tmp_path)
    for text in ("{}", '{"members": []}', '{"members": "ab"}'):
        (tmp_path / "ensemble.json").write_text(text)
        with pytest.raises(InputError, match=r"ensemble\.json is damaged"):
            check_folder(tmp_path)
