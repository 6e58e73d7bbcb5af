"""That Keras is an extra; these run with and without it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import chexpert_hf
from chexpert_hf.errors import InputError

FRAMEWORKS = {"keras", "tensorflow", "jax", "flax"}
ROOT = Path(chexpert_hf.__file__).parent


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_one_module_of_the_package_imports_keras_and_no_module_imports_that_one():
    names = {path: set(imports_of(path)) for path in ROOT.rglob("*.py")}
    using = [
        str(path.relative_to(ROOT)) for path, found in names.items() if {n.split(".")[0] for n in found} & FRAMEWORKS
    ]
    assert using == [str(Path("formats") / "keras.py")]
    assert [path for path, found in names.items() if any("formats.keras" in name for name in found)] == []


def test_where_keras_is_installed_training_and_help_do_not_import_it():
    pytest.importorskip("keras")
    code = (
        "import sys, chexpert_hf.training.run; from typer.testing import CliRunner\n"
        "from chexpert_hf.cli import app; assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().splitlines()[-1] == "[]"


def test_where_keras_is_missing_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(sys.modules, "chexpert_hf.formats.keras", raising=False)
    with pytest.raises(InputError, match=r'pip install "chexpert-hf\[keras\]"') as caught:
        importlib.import_module("chexpert_hf.formats.keras")
    assert "\n" not in str(caught.value)
