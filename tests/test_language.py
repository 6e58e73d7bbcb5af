"""Docstrings and comments say what a thing is or does: they do not open with a riddle."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import chexpert_hf

ROOT = Path(chexpert_hf.__file__).parent.parent
OPENINGS = re.compile(r"(What|Whoever|Who|Those|Of) ")


def texts(path: Path) -> list[tuple[int, str]]:
    """Docstrings, strings after assignments, and the first lines of comments, with their line numbers."""
    source = path.read_text(encoding="utf-8")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append((node.lineno, node.value.value.strip()))
    previous = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != previous + 1:
                found.append((token.start[0], token.string.lstrip("# ")))
            previous = token.start[0]
    return found


def test_riddles_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = '"""What it is."""\nX = 1\n"""Of each."""\n\n\ndef f():\n    """Whoever asks."""\n    # Those who wait\n'
    (tmp_path / "a.py").write_text(source)
    found = {text.split()[0] for _, text in texts(tmp_path / "a.py") if OPENINGS.match(text)}
    assert found == {"What", "Of", "Whoever", "Those"}


@pytest.mark.parametrize("folder", ["chexpert_hf", "space", "train"])
def test_no_text_opens_with_a_free_relative_clause_or_of(folder: str) -> None:
    if not (ROOT / folder).is_dir():
        pytest.skip("not a checkout")
    paths = [path for path in (ROOT / folder).rglob("*.py") if not path.is_symlink()]
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:60]}"
        for path in paths
        for line, text in texts(path)
        if OPENINGS.match(text)
    ]
    assert found == []
