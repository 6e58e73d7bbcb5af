"""Arguments that became options still work, do the same, and say so in a line."""

import shutil
from pathlib import Path

import pytest

from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.models.graph_files import RuntimeName
from chexpert_hf.publishing import check
from tests.commands import run as run_command

NOTE = "Note: {} deprecated and will stop working in version 0.3; use: chexpert-hf {}"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in a folder with a model, a folder that is none, and a picture; gives code, output and errors."""
    monkeypatch.setattr(check, "PACKAGES", {RuntimeName.TORCH: "torch"})
    shutil.copytree(DEFAULT_MODEL, tmp_path / "mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)

    return lambda line: run_command(monkeypatch, capsys, *line.split())


@pytest.mark.parametrize(
    ("old", "today", "moved", "code"),
    [
        ("check mine --json", "check --json --model mine", "MODEL as an argument is", 0),
        ("push mine me/my --dry-run", "push me/my --dry-run --model mine", "MODEL as an argument is", 0),
        ("push --dry-run mine me/my", "push --dry-run me/my --model mine", "MODEL as an argument is", 0),
        # Each of these fails for a reason that names what moved, before anything heavy is done.
        ("export images --runtime onnx", "export --runtime onnx --model images", "MODEL as an argument is", 2),
        ("bench images mine", "bench mine --model images", "MODEL as an argument is", 2),
        ("bench mine --only vax", "bench --only vax --model mine", "MODEL as an argument is", 2),
        ("import torchvision images", "import torchvision --output images", "OUTPUT as an argument is", 2),
        ("phantom images --studies 3", "phantom --studies 3 --output images", "OUTPUT as an argument is", 2),
    ],
)
def test_an_old_spelling_does_the_same_as_todays_and_its_note_shows_it(run, old, today, moved, code):
    found, out, err = run(old)
    note, _, rest = err.partition("\n")
    assert note == NOTE.format(moved, today)
    assert (found, out, rest) == run(today)
    assert found == code


@pytest.mark.parametrize("old", ["space mine me/page --dry-run page", "space --dry-run page mine me/page"])
def test_a_folder_after_a_spaces_dry_run_is_its_output(run, old):
    code, out, err = run(old)
    assert code == 0
    assert err.startswith("Note: MODEL and OUTPUT as arguments are deprecated")
    assert err.splitlines()[0].endswith(" --model mine --output page")
    assert (Path("page") / "model" / "config.json").is_file()
    assert run("space me/page --model mine --dry-run") == (0, out, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("check mine mine", "unexpected extra argument"),
        ("check mine --model mine", "unexpected extra argument"),
        ("push mine", "Missing option '--model'"),
    ],
)
def test_what_never_was_a_spelling_is_refused_as_ever(run, line, message):
    code, _, err = run(line)
    assert code == 2
    assert message in err
    assert "Note" not in err


def test_words_that_are_equal_keep_their_places(run):
    code, _, err = run("export images --output images --runtime onnx")
    assert code == 2
    assert err.splitlines()[0].endswith("use: chexpert-hf export --output images --runtime onnx --model images")
