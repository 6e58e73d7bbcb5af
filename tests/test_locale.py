"""UTF-8 is read and written where the locale has another encoding, as Windows and `LC_ALL=C` have."""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertForImageClassification, CheXpertImageProcessor

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONWARNDEFAULTENCODING": "1"}
NAMES = ["größe/übersicht.png", "größe/胸部.png"]


# Several commands in one process; arguments are decoded by it, as any command's are.
COMMANDS = """
import sys
from chexpert_hf.cli import main

for command in " ".join(sys.argv[1:]).split(" ++ "):
    sys.argv = ["chexpert-hf", *command.split(" ")]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    for stream in (sys.stdout, sys.stderr):
        print(f"== {code}", file=stream, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """A command's exit code and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radiographs")
    (folder / "größe").mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(folder / name)
    (folder / "list.txt").write_text("\n".join(NAMES), encoding="utf-8")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.write(folder / NAMES[0], "Lunge rechts ä.png")
    (folder / "größe" / "valid.csv").write_text("Path\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(radiographs: Path, shared_tiny_model: CheXpertForImageClassification) -> list[Done]:
    """`predict` to standard output and to a file, and `evaluate` of a folder whose name is not ASCII."""
    shared_tiny_model.save_pretrained(radiographs / "model")
    CheXpertImageProcessor(size={"height": 64, "width": 64}).save_pretrained(radiographs / "model")
    predict = "predict --list list.txt archive.zip --model model --runtime torch"
    commands = " ++ ".join([predict, f"{predict} --output ä.jsonl", "evaluate größe --model model"]).split(" ")
    search = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=radiographs,
        capture_output=True,
        env=os.environ | ASCII | {"PYTHONPATH": search},
    )
    assert process.returncode == 0, process.stderr.decode()
    out, err = (re.split(rb"^== (\d)\n", text, flags=re.MULTILINE) for text in (process.stdout, process.stderr))
    return [Done(int(code), *texts) for code, *texts in zip(out[1::2], out[:-1:2], err[:-1:2], strict=True)]


@pytest.mark.slow
def test_names_of_files_are_utf_8_on_standard_output_and_in_tables(radiographs, done):
    expected = [*NAMES, "archive.zip/Lunge rechts ä.png"]
    shown, written, _ = done
    assert shown.code == 0, shown.stderr.decode()
    assert sorted(line.split(",")[0] for line in shown.stdout.decode("utf-8").splitlines()[1:]) == sorted(expected)
    assert b"chexpert_hf/" not in shown.stderr  # no warning that a file was opened in the locale's encoding
    assert written.code == 0, written.stderr.decode()
    rows = (radiographs / "ä.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(row)["path"] for row in rows) == sorted(expected)


def test_what_the_locale_cannot_express_is_one_line_that_names_the_variable_that_helps(done):
    *_, evaluated = done
    assert evaluated.code == 2
    *_, line = evaluated.stderr.decode("ascii").splitlines()
    assert line.startswith("Error: a file name holds '\\udcc3")
    assert line.endswith("(ascii) cannot express; set the environment variable PYTHONUTF8=1.")
