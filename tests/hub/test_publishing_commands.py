"""check, push and space on the command line, and train --push-to-hub."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from chexpert_hf.models.graph_files import RuntimeName
from chexpert_hf.models.repositories import HubError
from chexpert_hf.publishing import check
from chexpert_hf.publishing.publish import Published
from tests.commands import run

SHA = "0123456789" * 4


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the Hub fails, and only PyTorch computes."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(check, "PACKAGES", {RuntimeName.TORCH: "torch"})


def test_check_prints_a_line_for_each_thing_and_exits_with_1_if_one_failed(monkeypatch, capsys, model_folder: Path):
    code, out, _ = run(monkeypatch, capsys, "check", "--model", model_folder)
    assert code == 0
    assert re.search(r"^checksums +ok +\d+ files are as they were saved$", out, re.MULTILINE)
    with (model_folder / "README.md").open("a") as card:
        card.write("\nMore.\n")
    code, out, _ = run(monkeypatch, capsys, "check", "--model", model_folder, "--json")
    report = json.loads(out)
    assert (code, report["is_ok"]) == (1, False)
    assert [line["subject"] for line in report["lines"] if line["result"] == "FAILED"] == ["checksums"]
    code, out, _ = run(monkeypatch, capsys, "check", "--model", model_folder, "--accept")
    assert code == 0
    assert "FAILED" not in out


def test_accept_is_for_folders(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "check", "--model", "me/tiny", "--accept")
    assert code == 2
    assert "Error: --accept is for a model folder, which me/tiny is not." in err


def test_a_dry_run_of_push_lists_the_files_without_network_or_token(monkeypatch, capsys, saved_folder: Path):
    monkeypatch.setattr("chexpert_hf.models.repositories.get_token", lambda: None)
    code, out, _ = run(monkeypatch, capsys, "push", "me/tiny", "--model", saved_folder, "--dry-run")
    assert code == 0
    size = (saved_folder / "model.safetensors").stat().st_size
    assert re.search(rf"^model\.safetensors +1 +{size:,}$", out, re.MULTILINE)
    assert re.search(r"^me/tiny +16 +[\d,]+$", out, re.MULTILINE)
    assert out.endswith("Nothing was sent.\n")


def test_a_push_without_a_token_is_one_line(monkeypatch, capsys, saved_folder: Path):
    monkeypatch.setattr("chexpert_hf.models.repositories.get_token", lambda: None)
    code, _, err = run(monkeypatch, capsys, "push", "me/tiny", "--model", saved_folder)
    assert code == 2
    assert err.strip().splitlines()[-1] == (
        "Error: There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN."
    )


def test_a_dry_run_of_space_writes_the_folder(monkeypatch, capsys, tmp_path: Path):
    folder = tmp_path / "page"
    arguments = ["space", "me/page", "--model", "me/tiny", "--revision", SHA, "--dry-run", "--output", folder]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert out.endswith("Nothing was sent.\n")
    assert f"The files of the Space are in {folder}." in err
    written = [path for path in folder.rglob("*") if path.is_file()]
    package = [path for path in written if path.is_relative_to(folder / "chexpert_hf")]
    for name, files in (("chexpert_hf/", package), ("app.py", [folder / "app.py"]), ("me/page", written)):
        size = sum(path.stat().st_size for path in files)
        assert re.search(rf"^{name} +{len(files)} +{size:,}$", out, re.MULTILINE)
    assert len(out.splitlines()) == 2 + len(list(folder.iterdir())) + 1
    _, out, _ = run(monkeypatch, capsys, *arguments[:-2], "--json")
    assert {name for name, _ in json.loads(out)["files"]} == {path.relative_to(folder).as_posix() for path in written}
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "is not empty; expected a new folder" in err


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push-to-hub", "tiny"], "hf_x", "'tiny' is not a repository id; expected user/name."),
        (["--push-to-hub", "me/tiny"], None, "There is no token for the Hub"),
        (["--push-to-hub", "me/tiny", "--runs", "2"], "hf_x", "Several runs make an ensemble"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_training(monkeypatch, capsys, tmp_path, options, token, message):
    monkeypatch.setattr("chexpert_hf.models.repositories.get_token", lambda: token)
    monkeypatch.setattr("chexpert_hf.training.run.train", lambda *arguments, **settings: pytest.fail("it trained"))
    code, _, err = run(monkeypatch, capsys, "train", tmp_path, "--output", tmp_path / "out", *options)
    assert code == 2
    assert message in err


def test_training_pushes_at_its_end_and_says_how_to_repeat_it(monkeypatch, capsys, tmp_path):
    sent: list[tuple[Path, str, bool]] = []

    def push(folder: Path, repo_id: str, *, private: bool) -> Published:
        sent.append((folder, repo_id, private))
        if len(sent) > 1:
            raise HubError("me/tiny: no answer.")
        return Published(repo_id, "address", SHA, ())

    result = SimpleNamespace(folder=tmp_path, evaluation=SimpleNamespace(to_dict=dict), chosen="step 1")
    monkeypatch.setattr("chexpert_hf.models.repositories.get_token", lambda: "hf_x")
    monkeypatch.setattr("chexpert_hf.training.run.train", lambda *arguments, **settings: result)
    monkeypatch.setattr("chexpert_hf.evaluation.report.report.as_table", lambda evaluation: "a table")
    monkeypatch.setattr("chexpert_hf.publishing.publish.push_model", push)
    arguments = ["train", tmp_path, "--output", tmp_path / "out", "--push-to-hub", "me/tiny", "--private"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert (code, sent) == (0, [(tmp_path / "out", "me/tiny", True)])
    assert "Pushed to me/tiny, commit 012345678901: address" in err
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"is complete; send it later: chexpert-hf push me/tiny --model {tmp_path / 'out'} --private" in err
