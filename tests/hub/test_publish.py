"""What goes to the Hub, what doesn't, and what is said when something goes wrong."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard

from chexpert_hf import CheXpertForImageClassification
from chexpert_hf.models.model_files import ChecksumError, write_checksums
from chexpert_hf.models.repositories import HubError
from chexpert_hf.publishing.check import FAILED, check_folder
from chexpert_hf.publishing.publish import PublishError, push_model, stage_model

from .stand_in import TOKEN, Fault, Hub

SENT = {
    "README.md",
    "checksums.json",
    "config.json",
    "backbones_chexpert.py",
    "configuration_chexpert.py",
    "evaluation.json",
    "export.json",
    "image_processing_chexpert.py",
    "labels.py",
    "model.safetensors",
    "modeling_chexpert.py",
    "onnx/model.onnx",
    "preprocessor_config.json",
    "recipe.yaml",
    "reference.json",
    "terms.json",
}


def test_only_what_is_meant_for_others_is_staged(saved_folder: Path, tmp_path: Path) -> None:
    staged = stage_model(saved_folder, "me/tiny", tmp_path / "staged")
    assert {name for name, _ in staged} == SENT
    assert all(size == (tmp_path / "staged" / name).stat().st_size for name, size in staged)


def test_no_local_path_and_no_patient_is_staged(saved_folder: Path, tmp_path: Path) -> None:
    stage_model(saved_folder, "me/tiny", tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [
                word for word in (b"/home/", b"patient1", b"hashes", str(saved_folder).encode()) if word in content
            ]
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["init"] == "base"


def test_the_staged_card_names_the_repository_and_the_staged_sums_are_those_of_the_staged_files(
    saved_folder: Path, tmp_path: Path
) -> None:
    stage_model(saved_folder, "me/tiny", tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == "tiny"
    assert card.text.strip().startswith("# tiny\n")
    assert card.text.count('"me/tiny"') == 4
    assert "tiny-run" not in str(card)
    lines = {line.subject: line for line in check_folder(tmp_path).lines}
    assert lines["checksums"].result == lines["card"].result == lines["files"].result == "ok"


def test_a_push_is_one_commit_with_the_staged_files(saved_folder: Path, tmp_path: Path, hub: Hub, api: HfApi) -> None:
    done = push_model(saved_folder, "me/tiny", private=True, api=api)
    repository = hub.repo("me/tiny")
    assert repository.private
    assert repository.messages == ["initial commit", "Upload tiny-run with chexpert-hf"]
    assert repository.files.keys() == SENT | {".gitattributes"}
    assert done.commit == repository.refs["main"]
    assert repository.files["model.safetensors"] == (saved_folder / "model.safetensors").read_bytes()
    assert TOKEN not in json.dumps(asdict(done))


def test_an_update_takes_out_what_the_new_version_lacks_and_leaves_what_others_added(
    model_folder: Path, hub: Hub, api: HfApi
) -> None:
    push_model(model_folder, "me/tiny", api=api)
    repository = hub.repo("me/tiny")
    repository.commit({**repository.files, "LICENSE": b"mine", "onnx/more/a.onnx": b"mine"}, "notes")
    (model_folder / "onnx" / "model.onnx").unlink()
    (model_folder / "export.json").unlink()
    write_checksums(model_folder)
    push_model(model_folder, "me/tiny", api=api)
    assert repository.files.keys() == (SENT | {".gitattributes", "LICENSE", "onnx/more/a.onnx"}) - {
        "onnx/model.onnx",
        "export.json",
    }
    assert len(repository.messages) == 4


def test_a_pull_request_leaves_main_as_it_is(saved_folder: Path, hub: Hub, api: HfApi) -> None:
    hub.add("somebody/model")
    done = push_model(saved_folder, "somebody/model", create_pr=True, api=api)
    repository = hub.repo("somebody/model")
    assert repository.files.keys() == {".gitattributes"}
    assert repository.commits[repository.refs["refs/pr/1"]].keys() == SENT | {".gitattributes"}
    assert done.url.endswith("/somebody/model/discussions/1")
    assert not any("create" in request for request in hub.requests if request.startswith("POST /api/repos"))


def test_an_interrupted_push_leaves_nothing_half_and_can_be_repeated(saved_folder: Path, hub: Hub, api: HfApi) -> None:
    hub.faults = [Fault("/commit/", 0)]
    with pytest.raises(HubError, match=r"me/tiny: no answer from the Hub .* repeat the command"):
        push_model(saved_folder, "me/tiny", api=api)
    assert hub.repo("me/tiny").files.keys() == {".gitattributes"}
    stored = [request for request in hub.requests if request.startswith("PUT")]
    push_model(saved_folder, "me/tiny", api=api)
    assert hub.repo("me/tiny").files.keys() == SENT | {".gitattributes"}
    assert [request for request in hub.requests if request.startswith("PUT")] == stored  # nothing large goes twice


def test_an_upload_that_is_dropped_once_goes_on_by_itself(saved_folder: Path, hub: Hub, api: HfApi) -> None:
    hub.faults = [Fault("/store/", 0)]
    push_model(saved_folder, "me/tiny", api=api)
    assert hub.faults == []
    assert hub.repo("me/tiny").files.keys() == SENT | {".gitattributes"}


STORAGE = "the account's storage is used up or blocked; make room, or ask for more in its settings under Billing"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Fault("/api/repos/create", 401),
            "the token is not valid; log in with `hf auth login`, or set HF_TOKEN to another",
        ),
        (Fault("/api/repos/create", 402), "the account's quota is used up; raise it in its settings under Billing"),
        (Fault("/api/repos/create", 403), "the token has no permission for that; it needs write access, so log in"),
        (Fault("/commit/", 404), "there is no such repository"),
        (
            Fault("/commit/", 404, code="RepoNotFound"),
            "there is no such repository, or this token has no access to it; log",
        ),
        (Fault("/preupload/", 403, code="GatedRepo"), "the repository is gated; ask for access at"),
        (Fault("/commit/", 409), "somebody changed it at the same moment; repeat"),
        (Fault("/commit/", 413), STORAGE),
        (Fault("/commit/", 403, "Private repository storage limit reached, please upgrade your plan"), STORAGE),
        (Fault("/info/lfs/", 403, "Your storage patterns tripped our internal systems!"), STORAGE),
        (Fault("/api/repos/create", 429), "too many requests; repeat the command later"),
        (Fault("/commit/", 500), "the Hub has a problem of its own; repeat the command later"),
        (Fault("/api/repos/create", 503), "the Hub has a problem of its own; repeat the command later"),
    ],
)
def test_what_the_hub_refuses_is_one_line(saved_folder: Path, hub: Hub, api: HfApi, fault: Fault, message: str) -> None:
    hub.faults = [fault] * 9
    with pytest.raises(HubError) as caught:
        push_model(saved_folder, "me/tiny", api=api)
    text = str(caught.value)
    assert text.startswith(f"me/tiny: {message}")
    assert "\n" not in text
    assert TOKEN not in text
    assert fault.code or f"(HTTP {fault.status}, {fault.text.rstrip('.')})" in text


def test_a_file_that_the_store_refuses_for_want_of_room_is_called_so(
    saved_folder: Path, hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise ValueError("LFS batch API returned errors:\nStorage quota exceeded")

    monkeypatch.setattr(api, "create_commit", refuse)
    with pytest.raises(HubError, match=f"^me/tiny: {STORAGE}, then repeat the command .LFS batch API"):
        push_model(saved_folder, "me/tiny", api=api)


def test_a_repository_of_others_that_is_private_is_like_one_that_is_not_there(
    saved_folder: Path, hub: Hub, api: HfApi
) -> None:
    hub.add("they/private", private=True)
    for repo_id in ("they/private", "they/none"):
        with pytest.raises(
            HubError, match=f"^{repo_id}: there is no such repository, or this token has no access to it"
        ):
            push_model(saved_folder, repo_id, create_pr=True, api=api)


def test_a_wrong_token_and_a_foreign_name_are_refused(saved_folder: Path, hub: Hub, api: HfApi) -> None:
    with pytest.raises(HubError, match=r"me/tiny: the token is not valid; log in with `hf auth login`"):
        push_model(saved_folder, "me/tiny", api=HfApi(endpoint=hub.url, token="hf_wrong"))
    with pytest.raises(HubError, match=r"they/tiny: the token has no permission for that.*rights to create"):
        push_model(saved_folder, "they/tiny", api=api)


def test_without_a_token_or_a_network_nothing_is_tried_twice(
    saved_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chexpert_hf.models.repositories.get_token", lambda: None)
    with pytest.raises(HubError, match="no token for the Hub: log in with `hf auth login`, or set HF_TOKEN"):
        push_model(saved_folder, "me/tiny", api=HfApi(endpoint=hub.url))
    assert hub.requests == []
    with pytest.raises(HubError, match="me/tiny: no answer from the Hub"):
        push_model(saved_folder, "me/tiny", api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))


@pytest.mark.parametrize("repo_id", ["tiny", "a/b/c", "me/ti ny", "me/-x-"])
def test_what_is_no_id_of_a_repository_is_refused(saved_folder: Path, repo_id: str) -> None:
    with pytest.raises(HubError, match=r"is not a repository id; expected user/name\."):
        push_model(saved_folder, repo_id)


def test_a_folder_that_is_not_fit_to_be_shown_is_refused(model_folder: Path, tmp_path: Path) -> None:
    card = model_folder / "README.md"
    whole = card.read_text()
    card.write_text(whole.replace("## Limits", "## TODO"))
    with pytest.raises(ChecksumError, match=r"README\.md is not as it was saved .*check .* --accept"):
        stage_model(model_folder, "me/tiny", tmp_path / "1")
    write_checksums(model_folder)
    with pytest.raises(PublishError, match="cannot be published: the section Limits is missing; a placeholder"):
        stage_model(model_folder, "me/tiny", tmp_path / "2")
    card.write_text(whole)
    (model_folder / "checksums.json").unlink()
    with pytest.raises(PublishError, match=r"has no checksums\.json: run `chexpert-hf check"):
        stage_model(model_folder, "me/tiny", tmp_path / "3")
    (model_folder / "reference.json").unlink()
    with pytest.raises(PublishError, match=r"not a complete model folder: reference\.json missing"):
        stage_model(model_folder, "me/tiny", tmp_path / "4")
    (model_folder / "ensemble.json").write_text("{}")
    with pytest.raises(PublishError, match=r"is an ensemble, .* push the model folders of its runs"):
        stage_model(model_folder, "me/tiny", tmp_path / "5")


def test_other_weights_do_not_go_with_the_card_of_the_former_ones(model_folder: Path, tmp_path: Path) -> None:
    model = CheXpertForImageClassification.from_pretrained(model_folder)
    torch.nn.init.ones_(model.classifier.bias)
    model.save_pretrained(model_folder)  # as a Trainer of transformers does
    write_checksums(model_folder)  # as `check --accept` does
    with pytest.raises(PublishError, match=r"does not compute the scores .*0\.0001 allowed.*save_model_folder"):
        stage_model(model_folder, "me/tiny", tmp_path / "1")
    reference = json.loads((model_folder / "reference.json").read_text())
    (model_folder / "reference.json").write_text(json.dumps({**reference, "image_sha256": "of another version"}))
    write_checksums(model_folder)
    assert stage_model(model_folder, "me/tiny", tmp_path / "2")  # nothing is known about its scores


def test_a_graph_of_unknown_origin_does_not_go(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "onnx" / "other.onnx").write_bytes(b"from somewhere")
    write_checksums(model_folder)
    assert "onnx/other.onnx" not in {name for name, _ in stage_model(model_folder, "me/tiny", tmp_path / "staged")}
    graphs = next(line for line in check_folder(model_folder).lines if line.subject == "graphs")
    assert graphs.result == FAILED
