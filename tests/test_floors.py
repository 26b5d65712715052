"""The house: a module imports only from lower floors. Never sideways, never up, lazy imports included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "fewfire"

FLOORS = {
    9: ["cli"],
    8: ["demo"],
    7: ["estimators", "explorer", "report"],
    6: ["runs"],
    5: ["trainer", "plot", "doctor", "conversion"],
    4: [
        "comparison",
        "engines",
        "evaluation",
        "files",
        "formats",
        "harvesting",
        "outputs",
        "probing",
        "scoring",
        "tracking",
        "variational",
        "calibration",
    ],
    3: ["anomaly", "autoencoder"],
    2: ["activations", "sources", "sparse_codes"],
    1: ["terms", "networks", "corruptions", "preprocess", "store"],
    0: ["contracts", "metrics", "disk", "kernels", "rng", "rows", "_version"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def imports_of(tree: ast.AST) -> set[str]:
    """The rooms of fewfire that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("fewfire")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test sees them"
            if node.module == "fewfire":
                found |= {f"fewfire.{a.name}" for a in node.names}
            elif node.module and node.module.startswith("fewfire."):
                found.add(node.module)
    return {name.split(".")[1] for name in found if "." in name}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_lower_floors(path):
    room = room_of(path)
    if room == "__init__":  # the list of public names stands outside the house
        return
    assert room in FLOOR, f"{room} has no floor; add it to FLOORS and to docs/architecture.md"
    for other in imports_of(ast.parse(path.read_text())) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def test_every_floor_is_inhabited():
    rooms = {room_of(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


def test_a_sideways_import_is_seen():
    tree = ast.parse(
        "def f():\n    from fewfire.networks import Linear\n    import fewfire.disk\n    from fewfire import rng"
    )
    assert imports_of(tree) == {"networks", "disk", "rng"}


def test_no_module_is_too_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, f"{path.name} has grown past 500 lines: make it a folder"
