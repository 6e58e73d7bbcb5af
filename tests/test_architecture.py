"""Data flows one way and imports point one way: a module imports only from groups above its own."""

import ast
from pathlib import Path

import chexpert_hf
from chexpert_hf.default_model import DEFAULT_MODEL

PACKAGE = Path(chexpert_hf.__file__).parent

# From top to bottom; the README draws the same.
GROUPS = [
    ["errors", "default_model"],
    ["labels", "configuration_chexpert", "image_processing_chexpert", "modeling_chexpert"],
    ["data"],
    ["evaluation"],
    ["inference"],
    ["hub"],
    ["training"],
    ["quickstart"],
    ["serving"],
    ["page"],
    ["demo"],
    ["bench"],
    ["cli"],
]
TRAVELLING = GROUPS[1]
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}


def modules() -> list[Path]:
    elsewhere = PACKAGE / "__init__.py", *DEFAULT_MODEL.glob("*.py")  # the bundled model's code is the package's
    return [path for path in PACKAGE.rglob("*.py") if path not in elsewhere]


def group_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_groups(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = list(path.relative_to(PACKAGE).with_suffix("").parts[: -node.level])
                name = ".".join([*base, *([node.module] if node.module else [])])
                found.add(name.split(".")[0])
            elif node.module and node.module.startswith("chexpert_hf."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("chexpert_hf.")}
    return found


def test_every_module_has_a_place():
    assert {group_of(path) for path in modules()} <= RANK.keys()


def test_modules_import_only_from_groups_above_their_own():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules()
        for name in imported_groups(path)
        if name != group_of(path) and RANK[name] >= RANK[group_of(path)] and name not in TRAVELLING
    ]
    assert wrong == []


def test_the_four_files_that_travel_import_only_each_other_and_in_the_form_that_is_copied():
    for name in TRAVELLING:
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        assert imported_groups(PACKAGE / f"{name}.py") <= set(TRAVELLING), name
        assert "from chexpert_hf" not in text, name
        assert "from . import" not in text, name


def test_modules_of_one_group_do_not_import_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in modules():
        name = ".".join(["chexpert_hf", *path.relative_to(PACKAGE).with_suffix("").parts])
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
        }

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        nexts = graph.get(start, set()) - seen
        return goal in nexts or any(reaches(item, goal, seen | nexts) for item in nexts)

    assert [name for name in graph if reaches(name, name, set())] == []


def test_the_observations_are_written_out_once():
    holders = [path.name for path in modules() if '"Enlarged Cardiomediastinum"' in path.read_text(encoding="utf-8")]
    assert "labels.py" in holders
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lists = [node for node in ast.walk(tree) if isinstance(node, (ast.List, ast.Tuple, ast.Set))]
        for node in lists:
            texts = {item.value for item in node.elts if isinstance(item, ast.Constant)}
            is_the_list = len(texts & set(chexpert_hf.OBSERVATIONS)) > 9
            assert not is_the_list or path.name == "labels.py", path


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, chexpert_hf.cli; print([m for m in ('torch', 'transformers', 'gradio') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
