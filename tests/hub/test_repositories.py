"""A model is fetched from a repository whole and from one commit, or one line says why not and what to do."""

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download

from chexpert_hf import CheXpertClassifier, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.cli import main
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.models.model_files import ChecksumError
from chexpert_hf.models.repositories import HubError, model_folder
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.publish import push_model, stage_space
from chexpert_hf.scoring.graphs.export import export_model

from .stand_in import TOKEN, Fault, Hub

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
EXAMPLE = Path(__file__).parents[2] / "space" / "examples" / "RG1.jpg"


@pytest.fixture
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Who asks no particular server asks the stand-in, with a token and an empty cache, which is returned."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CheXpert folder of phantoms."""
    root: Path = tmp_path_factory.mktemp("data")
    write_phantoms(root, num_studies=12, seed=1, valid_fraction=0.5)
    return root


@pytest.fixture
def pushed(saved_folder: Path, hub: Hub, api: HfApi, client: Path) -> str:
    """The commit of a model in me/tiny."""
    commit = push_model(saved_folder, "me/tiny", api=api).commit
    assert commit is not None
    hub.requests.clear()
    return commit


def refusal(model: str, revision: str | None = None) -> str:
    """The one line that is said instead of a folder."""
    with pytest.raises(HubError) as caught:
        model_folder(model, revision)
    text = str(caught.value)
    assert text.startswith(f"{model}: ")
    assert "\n" not in text
    assert TOKEN not in text
    return text


def test_only_what_is_loaded_is_fetched_and_all_of_it_is_of_one_commit(pushed: str, hub: Hub) -> None:
    folder = model_folder("me/tiny")
    assert {path.name for path in folder.iterdir()} == {
        "checksums.json",
        "config.json",
        "evaluation.json",
        "model.safetensors",
        "preprocessor_config.json",
        "terms.json",
    }
    asked = [request.split("/resolve/")[1].split("/")[0] for request in hub.requests if "/resolve/" in request]
    assert set(asked) == {pushed}
    hub.repo("me/tiny").commit({}, "a later commit")
    assert model_folder("me/tiny", pushed) == folder
    assert model_folder(folder) == folder


def test_scores_are_those_of_the_folder_that_was_pushed(saved_folder: Path, pushed: str, hub: Hub) -> None:
    hub.repo("me/tiny").commit({}, "a later commit, which is not asked for")
    fetched = CheXpertClassifier.from_pretrained("me/tiny", revision=pushed).predict(EXAMPLE)
    assert fetched == CheXpertClassifier.from_pretrained(saved_folder).predict(EXAMPLE)


def test_a_repository_with_divided_weights_of_transformers_is_fetched_whole(
    saved_folder: Path, hub: Hub, api: HfApi, client: Path, tmp_path: Path
) -> None:
    CheXpertForImageClassification.from_pretrained(saved_folder).save_pretrained(
        tmp_path / "divided", max_shard_size="10KB"
    )
    CheXpertImageProcessor.from_pretrained(saved_folder).save_pretrained(tmp_path / "divided")
    assert not (tmp_path / "divided" / "model.safetensors").exists()
    hub.add("me/divided").commit({path.name: path.read_bytes() for path in (tmp_path / "divided").iterdir()}, "all")
    expected = CheXpertClassifier.from_pretrained(saved_folder).predict(EXAMPLE).probabilities
    assert CheXpertClassifier.from_pretrained("me/divided").predict(EXAMPLE).probabilities == pytest.approx(expected)


def test_an_exported_graph_is_fetched_where_its_precision_is_asked_for(
    model_folder: Path, hub: Hub, api: HfApi, client: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export_model(model_folder, "onnx", "fp16")
    push_model(model_folder, "me/tiny", api=api)
    CheXpertClassifier.from_pretrained("me/tiny")
    assert not [request for request in hub.requests if "/resolve/" in request and "/onnx/" in request]
    local, fetched = (
        CheXpertClassifier.from_pretrained(each, runtime="onnx", precision="fp16") for each in (model_folder, "me/tiny")
    )
    assert "the exported onnx/model_fp16.onnx" in fetched.runtime.reason
    assert fetched.predict(EXAMPLE).probabilities == local.predict(EXAMPLE).probabilities
    with pytest.raises(InputError, match="there is no int8 graph"):
        CheXpertClassifier.from_pretrained("me/tiny", runtime="onnx", precision="int8")


def test_the_command_line_sends_a_model_and_checks_it_where_it_went(
    saved_folder: Path, hub: Hub, client: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("chexpert_hf.publishing.check.PACKAGES", {})
    answers = []
    for words in (
        ["push", "me/tiny", "--model", str(saved_folder), "--private", "--json"],
        ["check", "--model", "me/tiny", "--json"],
    ):
        monkeypatch.setattr(sys, "argv", ["chexpert-hf", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        answers.append(json.loads(capsys.readouterr().out))
    pushed, checked = answers
    assert hub.repo("me/tiny").private
    assert pushed["commit"] == hub.repo("me/tiny").refs["main"]
    results = {line["subject"]: line["result"] for line in checked["lines"]}
    assert {results[name] for name in ("files", "checksums", "code", "card", "model")} == {"ok"}


def test_a_gated_repository_says_where_to_ask(pushed: str, hub: Hub) -> None:
    hub.repo("me/tiny").gated = True
    assert refusal("me/tiny") == (
        f"me/tiny: the repository is gated; ask for access at {hub.url}/me/tiny, {LOG_IN}, and repeat the command."
    )


@pytest.mark.parametrize("status", [401, 403])
def test_it_is_the_hubs_word_that_tells_gated_from_forbidden(pushed: str, hub: Hub, status: int) -> None:
    hub.faults = [Fault("/resolve/", status, "Access is restricted", "GatedRepo")] * 9
    assert "me/tiny: the repository is gated; ask for access at" in refusal("me/tiny")


def test_what_is_private_is_like_what_is_not_there(hub: Hub, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("they/private", private=True)
    hub.add("me/private", private=True)
    unseen = "there is no such folder, and no such repository, or this token has no access to it"
    assert refusal("they/private") == f"they/private: {unseen}; {LOG_IN} if it is private."
    assert unseen in refusal("they/none")
    monkeypatch.delenv("HF_TOKEN")
    assert unseen in refusal("me/private")


def test_a_wrong_token_is_called_so(pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"the token is not valid; {LOG_IN} to another (HTTP 401" in refusal("me/tiny")


def test_a_revision_that_is_not_there_is_named_as_the_fault(pushed: str) -> None:
    assert refusal("me/tiny", "v9") == (
        "me/tiny: there is no such branch, tag or commit; without a revision, the current state is used."
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, f"the token has no permission to read it; {LOG_IN} to one that has (HTTP 403"),
        (429, "too many requests; repeat the command later (HTTP 429"),
        (500, "the Hub has a problem of its own; repeat the command later (HTTP 500"),
        (503, "the Hub has a problem of its own; repeat the command later (HTTP 503"),
        (
            0,
            "(Server disconnected without sending a response); check the name (there is no such folder)",
        ),
    ],
)
@pytest.mark.parametrize("place", ["/api/models/me/tiny", "/resolve/"])
def test_what_the_hub_refuses_is_one_line(pushed: str, hub: Hub, place: str, status: int, message: str) -> None:
    hub.faults = [Fault(place, status)] * 40
    assert message in refusal("me/tiny")
    hub.faults = []
    assert model_folder("me/tiny").is_dir()  # nothing half is left that would be in the way


def test_what_is_in_the_cache_is_used_while_the_hub_is_away(pushed: str, hub: Hub, monkeypatch) -> None:
    folder = model_folder("me/tiny")
    hub.faults = [Fault("me/tiny", 503)] * 9
    assert model_folder("me/tiny") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_folder("me/tiny") == folder
    with pytest.raises(
        HubError,
        match=r"me/other: there is no such folder; .* HF_HUB_OFFLINE is set, and this is not complete in the cache",
    ):
        model_folder("me/other")


def test_a_cache_that_another_program_filled_is_enough_where_it_holds_what_scores(pushed: str, hub: Hub) -> None:
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("me/tiny", name)
    model_folder("me/tiny", files=["config.json"])  # the list of all files is in the cache now
    hub.faults = [Fault("me/tiny", 503)] * 99
    assert "the Hub has a problem of its own" in refusal("me/tiny")
    hub.faults = []
    hf_hub_download("me/tiny", "preprocessor_config.json")
    hub.faults = [Fault("me/tiny", 503)] * 99
    assert len(CheXpertClassifier.from_pretrained("me/tiny").observations) == 14


def test_a_failure_on_the_way_never_leaves_out_the_gate_or_the_sums(pushed: str, hub: Hub) -> None:
    hub.faults = [Fault("/checksums.json", 429)] * 9
    with pytest.raises(HubError, match="too many requests"):
        CheXpertClassifier.from_pretrained("me/tiny")
    hub.faults = []
    config = model_folder("me/tiny") / "config.json"
    config.resolve().write_text(config.read_text().replace('"bn_size"', ' "bn_size"'))
    with pytest.raises(ChecksumError, match=r"config\.json is not as it was saved"):
        CheXpertClassifier.from_pretrained("me/tiny")


def test_a_repository_without_a_model_is_named_and_not_its_place_in_the_cache(hub: Hub, client: Path) -> None:
    hub.add("me/empty")
    with pytest.raises(ModelFolderError, match=r"^The repository me/empty holds no config\.json"):
        CheXpertClassifier.from_pretrained("me/empty")


def test_an_export_of_a_repository_starts_from_all_of_its_files(pushed: str, monkeypatch, tmp_path: Path) -> None:
    sources: list[Path] = []

    def stop(folder: Path) -> None:
        sources.append(folder)
        raise InputError("far enough")

    monkeypatch.setattr("chexpert_hf.scoring.graphs.export.reference_phantom", stop)
    with pytest.raises(InputError, match="far enough"):
        export_model("me/tiny", "onnx", output=tmp_path / "out")
    assert (sources[0] / "README.md").is_file()
    assert (sources[0] / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize("model", ["tiny", "runs/first/model", "./tiny", "no such model"])
def test_what_is_neither_folder_nor_id_is_not_asked_for(hub: Hub, client: Path, model: str) -> None:
    with pytest.raises(ModelFolderError, match=r"is neither a model folder nor the id of a repository\. Expected"):
        model_folder(model)
    assert hub.requests == []


@pytest.mark.parametrize(
    "command",
    [
        ["predict", EXAMPLE, "--model", "me/tiny"],
        ["demo", "--model", "me/tiny"],
        ["evaluate", "DATA", "--model", "me/tiny"],
        ["check", "--model", "me/tiny"],
        ["export", "--model", "me/tiny", "--runtime", "onnx", "--output", "OUT"],
        ["export", "--model", "me/tiny", "--format", "timm", "--output", "OUT"],
        ["train", "DATA", "--output", "OUT", "--init", "me/tiny"],
    ],
    ids=lambda command: " ".join(map(str, command[:1] + command[3:4])),
)
def test_every_command_that_takes_a_repository_says_that_line_and_exits_with_2(
    pushed: str, hub: Hub, monkeypatch, capsys, tmp_path: Path, data: Path, command: list[object]
) -> None:
    hub.repo("me/tiny").gated = True
    places = {"DATA": data, "OUT": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", ["chexpert-hf", *(str(places.get(str(word), word)) for word in command)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("Error: me/tiny: the repository is gated; ask for access at ")


def test_a_space_of_a_model_that_cannot_be_seen_is_refused_in_the_same_words(hub: Hub, client: Path, tmp_path) -> None:
    with pytest.raises(InputError, match=r"^they/none: there is no such folder, and no such repository, or this token"):
        stage_space("they/none", "me/page", tmp_path / "page", api=HfApi(endpoint=hub.url))
