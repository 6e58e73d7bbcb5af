"""Data flows one way and imports point one way: a module imports only from packages above its own."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import chexpert_hf
from chexpert_hf.default_model import DEFAULT_MODEL

PACKAGE = Path(chexpert_hf.__file__).parent

# From top to bottom; docs/concepts/architecture.md draws the same.
GROUPS = [
    ["errors"],
    ["files", "default_model", "csv_dialect", "machine"],
    ["labels", "configuration_chexpert", "image_processing_chexpert", "backbones_chexpert", "modeling_chexpert"],
    ["radiographs"],
    ["datasets"],
    ["phantoms"],
    ["models"],
    ["gate"],
    ["scoring"],
    ["folders"],
    ["evaluation"],
    ["publishing"],
    ["formats"],
    ["training"],
    ["api"],
    ["quickstart"],
    ["app"],
    ["bench"],
    ["cli"],
]
TRAVELLING = GROUPS[2]
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}


def modules() -> dict[str, Path]:
    """Modules by their dotted name below the package; a package's face ends in `__init__`."""
    paths = [path for path in PACKAGE.rglob("*.py") if DEFAULT_MODEL not in path.parents]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imported_modules(name: str, known: dict[str, Path]) -> set[str]:
    """Names in `known` that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ["chexpert_hf", *name.split(".")[: -node.level]] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            wanted = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            source, wanted = "", [alias.name for alias in node.names]
        else:
            continue
        for full in wanted:
            if not full.startswith("chexpert_hf."):
                continue
            names = (full, f"{full}.__init__", source, f"{source}.__init__")
            there = [one for one in (each.removeprefix("chexpert_hf.") for each in names) if one in known]
            found |= {one for one in there[:1] if one != "__init__"}
    return found


def imports() -> dict[str, set[str]]:
    known = modules()
    return {name: imported_modules(name, known) for name in known if name != "__init__"}


def test_every_module_has_a_place():
    assert {name.split(".")[0] for name in imports()} == RANK.keys()


def test_modules_import_only_from_packages_above_their_own():
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if (own := name.split(".")[0]) != (top := other.split(".")[0])
        and RANK[top] >= RANK[own]
        and top not in TRAVELLING
    ]
    assert wrong == []


def test_the_files_that_travel_import_only_each_other_and_in_the_form_that_is_copied():
    graph = imports()
    for name in TRAVELLING:
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        assert graph[name] <= set(TRAVELLING), name
        assert "from chexpert_hf" not in text, name
        assert "from . import" not in text, name


def test_imports_form_no_circle_at_any_depth():
    """Among the children of each package, modules and sub-packages alike."""
    levels: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, others in imports().items():
        for other in others:
            own, top = name.split("."), other.split(".")
            shared = next((i for i, (x, y) in enumerate(zip(own, top, strict=False)) if x != y), None)
            if shared is not None:
                levels[".".join(own[:shared])][own[shared]].add(top[shared])

    def reaches(graph: dict[str, set[str]], start: str, goal: str, seen: set[str]) -> bool:
        nexts = graph.get(start, set()) - seen
        return goal in nexts or any(reaches(graph, item, goal, seen | nexts) for item in nexts)

    circles = [
        f"{package}: {child}"
        for package, graph in levels.items()
        for child in list(graph)
        if reaches(graph, child, child, set())
    ]
    assert circles == []


def test_the_observations_are_written_out_once():
    holders = [
        path.name for path in modules().values() if '"Enlarged Cardiomediastinum"' in path.read_text(encoding="utf-8")
    ]
    assert "labels.py" in holders
    for path in modules().values():
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


# Private names of other libraries, by the one module that may use them, each with its reason and the tested version.
PRIVATE_NAMES = {
    "training/durable/trainer_checkpoints.py": "transformers 5.20: the Trainer's steps of saving and loading",
    "image_processing_chexpert.py": "transformers 5.20: `_preprocess` and its input, as every processor",
    "modeling_chexpert.py": "transformers 5.20: `_init_weights`, as every model",
    "backbones_chexpert.py": "transformers 5.20: `_gradient_checkpointing_func`, as every model",
    "app/server/launch.py": "Python: `os._exit`, to end while threads of other libraries still run",
}


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    is_notebooks = name.startswith("_repr_") and name.endswith("_")  # IPython's public protocol
    return name.startswith("_") and not name.startswith("__") and name != "_" and not is_notebooks


def own_private_names(trees: Iterable[ast.Module]) -> set[str]:
    """Private names that the package defines: functions, classes, attributes and variables."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


def parsed() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in modules().values()
    }


def test_private_names_of_other_libraries_stand_in_the_modules_that_are_listed():
    trees = parsed()
    own = own_private_names(trees.values()) | {"_asdict", "_fields", "_replace"}  # of named tuples, documented
    users = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own)
        or (isinstance(node, ast.ImportFrom) and not node.level and any(is_private(one.name) for one in node.names))
    }
    assert users <= PRIVATE_NAMES.keys()


def test_no_test_uses_a_private_name_of_the_package():
    own = own_private_names(parsed().values())
    found = []
    for path in Path(__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = own_private_names([tree])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chexpert_hf"):
                found += [f"{path.name}: {one.name}" for one in node.names if is_private(one.name)]
            elif isinstance(node, ast.Attribute) and node.attr in own - defined:
                found += [] if root_of(node) in {"self", "cls"} else [f"{path.name}: {ast.unparse(node)}"]
            elif isinstance(node, ast.Constant) and re.fullmatch(r"chexpert_hf[.\w]*\._[a-z]\w*", str(node.value)):
                found.append(f"{path.name}: {node.value}")
    assert [one for one in found if "DurableCheckpoints._save_checkpoint" not in one] == []  # the Trainer's, for kills
