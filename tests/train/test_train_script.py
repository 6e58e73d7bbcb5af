"""`train/train.py` runs alone: its metadata (PEP 723) says what it needs, and it finds the package or says so."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "train.py"
# The reference implementation's, https://packaging.python.org/en/latest/specifications/inline-script-metadata/
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def metadata() -> dict[str, Any]:
    """What `uv run` reads."""
    (block,) = [found for found in BLOCK.finditer(SCRIPT.read_text(encoding="utf-8")) if found["type"] == "script"]
    lines = block["content"].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


def sent_to(folder: Path) -> Path:
    """A copy of the script in `folder`/train."""
    script = folder / "train" / "train.py"
    script.parent.mkdir(parents=True)
    shutil.copyfile(SCRIPT, script)
    return script


def package_in(folder: Path) -> Path:
    """A package of that name whose command line prints what it is given, and where it lies."""
    package = folder / "chexpert_hf"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text("import sys\ndef main(): print(__file__, *sys.argv[1:])\n")
    return folder


def run(script: Path, installed: Path) -> subprocess.CompletedProcess[str]:
    """Runs it with what is in `installed` and nothing else."""
    return subprocess.run(
        [sys.executable, "-S", str(script), "DATA", "--output", "OUT"],
        cwd=script.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_asks_for_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata() == {
        "requires-python": project["requires-python"],
        "dependencies": project["dependencies"],
    }


def test_in_a_checkout_it_takes_the_package_beside_it(tmp_path: Path) -> None:
    script = sent_to(package_in(tmp_path / "checkout"))
    done = run(script, tmp_path)
    assert done.stdout.split() == [str(tmp_path / "checkout/chexpert_hf/cli.py"), "train", "DATA", "--output", "OUT"]


def test_an_installed_package_goes_before_the_one_beside_it(tmp_path: Path) -> None:
    script = sent_to(package_in(tmp_path / "checkout"))
    done = run(script, package_in(tmp_path / "installed"))
    assert done.stdout.split()[0] == str(tmp_path / "installed/chexpert_hf/cli.py")


def test_sent_alone_it_takes_what_was_sent_with_it_or_says_what_is_missing(tmp_path: Path) -> None:
    script = sent_to(tmp_path / "data")
    assert run(script, package_in(tmp_path / "wheel")).stdout.startswith(str(tmp_path / "wheel"))
    done = run(script, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: chexpert_hf is neither installed nor beside it: uv run --with WHEEL train.py.\n"
