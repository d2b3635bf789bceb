"""The house keeps its walls: rooms have their files, and modules import only what lies below them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(path.name for path in (ROOT / "dakd" / "kernels").iterdir() if (path / "api.py").exists())

# Highest first; a module may import its own area and the areas of lower rows, never one of its own row or above.
ROWS = [
    {"__main__"},
    {"cli"},
    {"ablate", "convergence", "doctor", "verify"},
    {"api"},
    {"pipeline", "report"},
    {"check"},
    {"train", "generate", "refine", "pseudo_label", "evaluate", "predict"},
    {"hub", "scene"},
    {"card", "starter"},
    {"metrics", "weights"},
    {"models", "diffusion", "testing"},
    {"data"},
    {"kernels"},
    {"runtime"},
    {"config"},
    {"names", "sampling", "shipped"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
TOP_LEVEL = {
    "setup.py", "csrc", "dakd", "launch", "configs", "benchmarks", "tests", "README.md", "CONTRIBUTING.md",
    "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "MANIFEST.in", "LICENSE", "Makefile", ".gitignore", ".ci", ".git",
}  # fmt: skip


def module_files() -> list[Path]:
    return sorted((ROOT / "dakd").rglob("*.py"))


def name_of(path: Path) -> str:
    """dakd/data/order.py to dakd.data.order, a folder's __init__.py to the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in module_files()}


def imported_modules(path: Path) -> set[str]:
    """The modules of dakd that a file imports, anywhere in it: in functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in full}
    return {name for name in names if name.split(".")[0] == "dakd"}


def imported_areas(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported_modules(path) if "." in name}


def area_of(path: Path) -> str:
    return path.relative_to(ROOT / "dakd").parts[0].removesuffix(".py")


def breaches(area: str, imported: set[str]) -> set[str]:
    return {name for name in imported if name != area and ROW_OF[name] <= ROW_OF[area]}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A chain of names, each importing the next, that ends where it starts; empty where there is none."""
    finished: set[str] = set()

    def visit(name: str, chain: list[str]) -> list[str]:
        if name in chain:
            return [*chain[chain.index(name) :], name]
        if name in finished:
            return []
        for imported in sorted(graph[name] & graph.keys() - {name}):
            if found := visit(imported, [*chain, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_there_are_six_rooms():
    assert ROOMS == [
        "ddim_step", "depthwise_conv1d", "joint_noising", "seg_loss", "selective_scan", "transposed_attention",
    ]  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_its_files_its_test_and_its_benchmark(room):
    folder = ROOT / "dakd" / "kernels" / room
    wanted = [folder / name for name in ("__init__.py", "api.py", "ops.py", "reference.py")]
    wanted += [ROOT / "tests" / "kernels" / f"test_{room}.py", ROOT / "benchmarks" / "kernels" / f"bench_{room}.py"]
    assert [str(path) for path in wanted if not path.exists()] == []


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_lies_below_it(path):
    area = area_of(path)
    if area == "__init__":
        assert imported_areas(path) == {"api", "kernels"}
    else:
        assert breaches(area, imported_areas(path)) == set()


def test_a_breach_would_be_seen():
    assert breaches("kernels", {"models", "runtime"}) == {"models"}
    assert breaches("train", {"generate", "weights"}) == {"generate"}


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 500, "the imports of dakd were not found"
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c", "e"}, "c": {"a"}, "e": set()}) == ["a", "b", "c", "a"]


def test_the_import_graph_has_no_arrow_up():
    """`pytest -s tests/test_layout.py -k arrow` prints it: every area, and the areas below that it imports."""
    below: dict[str, set[str]] = {name: set() for name in ROW_OF}
    for path in module_files():
        if area_of(path) != "__init__":
            below[area_of(path)] |= imported_areas(path) - {area_of(path)}
    print()
    for row in ROWS:
        for area in sorted(row):
            print(f"{area:>10} -> {' '.join(sorted(below[area], key=ROW_OF.__getitem__)) or '(nothing)'}")
    arrows_up = [(area, name) for area in below for name in below[area] if ROW_OF[name] <= ROW_OF[area]]
    assert arrows_up == []


def test_the_front_door_is_imported_by_the_package_alone():
    users = {area_of(path) for path in module_files() if "api" in imported_areas(path)}
    assert users <= {"__init__", "api"}


def test_testing_is_imported_by_tests_and_benchmarks_only():
    users = {area_of(path) for path in module_files() if "testing" in imported_areas(path)}
    assert users <= {"testing"}


def test_variants_of_a_room_do_not_import_one_another():
    variants = {"reference", "triton", "cuda", "cpu", "mamba_ssm", "causal_conv1d"}
    for room in ROOMS:
        for path in (ROOT / "dakd" / "kernels" / room).glob("*.py"):
            if path.stem in variants:
                modules = {node.module or "" for node in ast.walk(ast.parse(path.read_text()))
                           if isinstance(node, ast.ImportFrom)}
                own = {m for m in modules if m.startswith(f"dakd.kernels.{room}.")}
                crossing = {m for m in own if m.split(".")[-1] in variants}
                assert crossing == set(), path


def test_only_known_things_stand_at_the_top_level():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    found = {path.name for path in ROOT.iterdir()} - ignored
    assert {name for name in found if not name.endswith(".egg-info")} <= TOP_LEVEL


def test_the_tests_that_another_python_runs_are_there():
    recipe = re.search(r"^OTHER_TESTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    names = recipe.group(1).replace("\\", " ").split()
    assert len(names) > 5
    assert [name for name in names if not (ROOT / "tests" / name.partition("::")[0]).exists()] == []
