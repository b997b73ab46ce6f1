"""The rooms of the house: hardware <- perfmodel <- solvers <- cli, and nothing slow on the doorstep."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("hardware", "perfmodel", "solvers", "cli")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SLOW = {"numpy", "scipy", "pandas", "networkx", "pulp", "highspy"}


def imports(tree: ast.AST, functions: bool) -> Iterator[tuple[int, str, int]]:
    """Line, module and level of every import; those inside functions and of type checkers only if asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name, 0) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module or ''}.{name.name}", node.level) for name in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if functions or not (inside or typing_only):
            yield from imports(node, functions)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_back_up(path: Path) -> None:
    below = ROOMS[: ROOMS.index(room(path)) + 1]
    for line, module, level in imports(ast.parse(path.read_text()), functions=True):
        top = module.split(".")[0]
        assert level == 0, f"{path}:{line}: relative import"
        assert top not in ROOMS or top in below, f"{path}:{line}: {room(path)} imports {module}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_program_starts_without_anything_slow() -> None:
    """Follow module-level imports from the program; what a command imports when it runs is its own matter."""
    by_name = {module_of(path): path for path in FILES}
    reached, ahead = set(), ["cli.app"]
    while ahead:
        name = ahead.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        for line, module, _ in imports(ast.parse(by_name[name].read_text()), functions=False):
            assert module.split(".")[0] not in SLOW, f"{by_name[name]}:{line}: {module}"
            parts = module.split(".")
            ahead += [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    assert "cli.program" in reached and "hardware.faults" in reached


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "cli"], ids=lambda path: path.name)
def test_the_command_line_computes_nothing(path: Path) -> None:
    for line, module, _ in imports(ast.parse(path.read_text()), functions=False):
        assert module.split(".")[0] not in SLOW, f"{path}:{line}: {module} at module level"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if module_of(path) != "solvers.backend"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_one_file_talks_to_the_solver(path: Path) -> None:
    for line, module, _ in imports(ast.parse(path.read_text()), functions=True):
        assert module.split(".")[0] != "highspy", f"{path}:{line}: {module}"


def test_the_check_itself_sees_imports_in_functions() -> None:
    tree = ast.parse("def f():\n    from cli import app\nif True:\n    import numpy.linalg\nfrom . import x\n")
    assert sorted(imports(tree, functions=True)) == [(2, "cli.app", 0), (4, "numpy.linalg", 0), (5, ".x", 1)]
    assert sorted(imports(tree, functions=False)) == [(4, "numpy.linalg", 0), (5, ".x", 1)]
