"""The house stays a house: arrows point one way, no cycle, no torch where none belongs, rooms of readable size."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("harness", "analysis")
MOST_LINES, MOST_LOOSE, MOST_IN_ALL = 300, 7, 31_750

ALLOWED = {
    "flows": (),
    "decoders": ("flows",),
    "fitting": ("decoders", "flows", "metrics"),
    "contract": ("fitting", "decoders", "flows"),
    "datasets": (),
    "metrics": ("datasets", "decoders", "flows"),
    "training": ("metrics", "datasets", "flows"),
    "runs": (),
    "measure": ("contract", "metrics", "fitting", "decoders", "flows", "datasets", "runs"),
}
"""What a room of `harness/` may import of the others; errors, files, options, progress and registry are for all."""


def modules():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = modules()


@cache
def imports(module):
    """What a module imports of this project, imports inside functions counted, those for type checkers not."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    # `from package import name` loads the package; of a package that only gathers names, that is no arrow to itself
    return {name for name in found if name != module and not module.startswith(f"{name}.")}


def test_no_import_cycle_imports_inside_functions_counted():
    done, cycles = set(), []

    def visit(module, above):
        if module in above:
            cycles.append(" -> ".join([*above[above.index(module) :], module]))
        elif module not in done:
            for other in sorted(imports(module)):
                visit(other, (*above, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())
    assert cycles == []


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_point_one_way(room):
    crossing = [
        f"{module} -> {other}"
        for module in MODULES
        if module.startswith(f"harness.{room}")
        for other in imports(module)
        if other.split(".")[0] == "analysis"
        or (other.split(".")[1:2] and other.split(".")[1] in {*ALLOWED, "cli"} - {room, *ALLOWED[room]})
    ]
    assert crossing == []


def test_analysis_uses_of_the_harness_what_imports_no_torch():
    rooms = {other.split(".")[1] for module in MODULES if module.startswith("analysis") for other in imports(module)
             if other.startswith("harness.") and module != "analysis.__main__"}  # fmt: skip
    assert rooms <= {"runs", "errors", "files"}


WITHOUT_TORCH = """
import importlib, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch in this process")

sys.meta_path.insert(0, NoTorch())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("package", ["harness.runs", "analysis"])
def test_a_process_without_torch_can_import_it(package):
    names = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    names = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_few_loose_modules_and_none_too_long():
    loose = [path.name for path in (ROOT / "harness").glob("*.py")]
    assert len(loose) <= MOST_LOOSE, loose
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_house_is_no_larger_than_it_says():
    files = [path for folder in (*PACKAGES, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= MOST_IN_ALL


def test_abilities_are_asked_for_by_name():
    """No `hasattr` or `getattr` finds out what a flow or a layer can do."""
    guilty = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                asked = node.args[0]
                if node.func.id == "getattr" and len(node.args) == 2:  # a field by its name, none that may be absent
                    continue
                name = asked.attr if isinstance(asked, ast.Attribute) else getattr(asked, "id", "")
                if name in ("flow", "layer", "subject", "condition"):
                    guilty.append(f"{module}:{node.lineno}")
    assert guilty == []


def test_the_public_face_names_what_is_there():
    import harness

    assert all(getattr(harness, name).__name__ == name for name in harness.__all__)
