"""UTF-8 is read and written where the locale has another encoding, as Windows and `LC_ALL=C` have."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONWARNDEFAULTENCODING": "1"}
NAMES = ["größe/übersicht.png", "größe/胸部.png"]


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    (tmp_path / "größe").mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("\n".join(NAMES), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(tmp_path / NAMES[0], "Lunge rechts ä.png")
    return tmp_path


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "chexpert_hf.cli", *map(str, arguments)]
    search = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=folder, capture_output=True, env=os.environ | ASCII | {"PYTHONPATH": search})


def test_names_of_files_are_utf_8_on_standard_output_and_in_tables(radiographs, tiny_folder):
    expected = [*NAMES, "archive.zip/Lunge rechts ä.png"]
    arguments = ["predict", "--list", "list.txt", "archive.zip", "--model", tiny_folder, "--runtime", "torch"]
    shown = run(radiographs, *arguments)
    assert shown.returncode == 0, shown.stderr.decode()
    assert sorted(line.split(",")[0] for line in shown.stdout.decode("utf-8").splitlines()[1:]) == sorted(expected)
    assert b"chexpert_hf/" not in shown.stderr  # no warning that a file was opened in the locale's encoding
    done = run(radiographs, *arguments, "--output", "ä.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    rows = (radiographs / "ä.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(row)["path"] for row in rows) == sorted(expected)


def test_what_the_locale_cannot_express_is_one_line_that_names_the_variable_that_helps(radiographs, tiny_folder):
    (radiographs / "größe" / "valid.csv").write_text("Path\n", encoding="utf-8")
    done = run(radiographs, "evaluate", "größe", "--model", tiny_folder)
    assert done.returncode == 2
    *_, line = done.stderr.decode("ascii").splitlines()
    assert line.startswith("Error: a file name holds '\\udcc3")
    assert line.endswith("(ascii) cannot express; set the environment variable PYTHONUTF8=1.")
