"""Other libraries are used as they are: nothing of them is replaced at run time."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import chexpert_hf

PACKAGE = Path(chexpert_hf.__file__).parent

SETTINGS = {"torch.backends.cudnn.deterministic", "torch.backends.cudnn.benchmark"}
"""What a library's documentation says to set this way."""


def replacements(source: str) -> Iterator[str]:
    """Assignments to an attribute of something that is imported from outside of the package, also by `setattr`."""
    tree = ast.parse(source)
    foreign = set()
    for node in ast.walk(tree):
        is_ours = isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("chexpert_hf"))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not is_ours:
            foreign |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            targets = [ast.Attribute(node.args[0], "set")]
        else:
            continue
        for target in targets:
            root = target
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in foreign:
                yield f"line {node.lineno}: {ast.unparse(target)}"


def test_nothing_of_another_library_is_replaced():
    found = [
        f"{path.relative_to(PACKAGE)}, {place}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for place in replacements(path.read_text(encoding="utf-8"))
        if place.split(": ")[1] not in SETTINGS
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("import gradio as gr\ngr.Blocks.launch = print", True),
        ("from gradio import route_utils\nroute_utils.Upload: type = int", True),
        ("import os.path\nsetattr(os.path, 'sep', '/')", True),
        ("from torch import nn\ndel nn.Module.forward", True),
        ("from chexpert_hf import labels\nlabels.X = 1", False),
        ("import numpy as np\nx = np.zeros(3)\nx.flat = 1", False),
    ],
)
def test_replacements_are_found(source, is_found):
    assert bool(list(replacements(source))) is is_found
