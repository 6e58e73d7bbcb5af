"""Quickstart: the page is there before training is, then serves what was made; nothing half-made is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from chexpert_hf import cli, quickstart
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.models.model_files import differences, missing_files
from tests.commands import run

RECIPE = """
init: random
architecture: {growth_rate: 4, block_config: [2, 2], num_init_features: 8, bn_size: 2}
num_channels: 1
image_size: 32
frontal_only: true
epochs: 1
batch_size: 8
workers: 0
model_name: of the quickstart
warnings: [Learned from drawings.]
"""
FEW, MANY = 60, 100_000
START = """
import sys
from pathlib import Path
from chexpert_hf import cli, quickstart
quickstart.NUM_STUDIES, quickstart.UNSEEN_STUDIES, quickstart.RECIPE = int(sys.argv[1]), 20, Path("recipe.yaml")
sys.argv = ["chexpert-hf", "quickstart", "--output", "out", *sys.argv[2:]]
cli.main()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command with so many studies and these options, in a process group of its own."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    started: list[subprocess.Popen[str]] = []
    root = str(Path(cli.__file__).parents[2])

    def start(num_studies: int, *options: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", START, str(num_studies), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line from now on in which the pattern is found."""
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if match := re.search(pattern, line):
            return match
    pytest.fail(f"{pattern} is not in: {''.join(lines)}")


def interrupt(process: subprocess.Popen[str]) -> int:
    """Ctrl-C, which a terminal sends to all processes of the group; gives the exit code."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=20)


PAGE = r"The page is at (http://127\.0\.0\.1:\d+/)"


@pytest.mark.slow
def test_the_page_serves_the_bundled_model_while_another_is_trained_and_then_that_one(start, tmp_path):
    process = start(FEW)
    address = wait_for(process, PAGE)[1]
    assert httpx.get(address).status_code == 200
    assert httpx.get(f"{address}api/v1/model").json()["name"] == "nih"
    assert not (tmp_path / "out").exists()
    wait_for(process, "^Mean AUROC|studies, maximum")
    assert wait_for(process, PAGE)[1] == address
    assert httpx.get(f"{address}api/v1/model").json()["name"] == "of the quickstart"
    assert interrupt(process) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "recipe.yaml"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"phantoms", "unseen", "model", "overlays"}
    assert missing_files(tmp_path / "out" / "model") == differences(tmp_path / "out" / "model") == []


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(start, tmp_path):
    process = start(MANY, "--no-serve")
    wait_for(process, "Drawing radiographs")
    assert interrupt(process) == 130
    assert "Traceback" not in process.stdout.read()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_without_the_page_the_result_is_a_table_or_json_and_its_folders(monkeypatch, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name, value in (("NUM_STUDIES", FEW), ("UNSEEN_STUDIES", 20), ("RECIPE", tmp_path / "recipe.yaml")):
        monkeypatch.setattr(quickstart, name, value)
    out = tmp_path / "out"
    code, printed, said = run(monkeypatch, capsys, "quickstart", "--no-serve", "--output", out, "--json")
    assert code == 0
    result = json.loads(printed)
    assert [Path(result[name]).parent for name in ("model", "overlays", "phantoms", "unseen")] == [out] * 4
    assert {path.stem for path in Path(result["overlays"]).iterdir()} == set(OBSERVATIONS)
    assert [one["observation"] for one in result["observations"]] == list(OBSERVATIONS)
    stages = ["Drawing radiographs ...", "Training ...", "Evaluating ...", "Warning: Learned from drawings."]
    assert said.splitlines() == stages
    code, _, said = run(monkeypatch, capsys, "quickstart", "--no-serve", "--output", out)
    assert (code, "is not empty; choose another with --output" in said) == (2, True)


def test_json_needs_an_end(monkeypatch, capsys):
    code, _, said = run(monkeypatch, capsys, "quickstart", "--json")
    assert (code, "--json needs --no-serve" in said) == (2, True)
