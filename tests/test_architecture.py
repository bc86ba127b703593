"""The house's plan, held: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kernelkit"

ROOMS = [  # a room imports only what stands before it
    *("errors", "config", "imports", "bundle", "image", "runtime", "witness", "render", "secrets"),
    *("notebook", "sync", "preflight", "prove", "client", "remote", "push", "places", "verify"),
    *("outputs", "unpack", "submission", "ledger", "history", "causes", "tracebacks", "diagnose"),
    *("doctor", "pipeline", "probe", "speak", "cli", "__main__"),
]

CLIENT = ("answers", "connection", "credentials", "logs", "files", "kaggle", "competitions")

NEVER = {
    "errors": {"kernelkit"},
    "imports": {"jinja2", "kaggle", "kagglesdk"},
    "bundle": {"jinja2", "kaggle", "kagglesdk"},
    "runtime": {"kernelkit", "jinja2", "nbformat", "pydantic", "rich"},
    "witness": {"kernelkit"},
    "prove": {"kernelkit.kaggle", "kernelkit.emulator", "kaggle", "kagglesdk"},
    "render": {"kaggle", "kagglesdk", "kernelkit.kaggle"},
    "notebook": {f"kernelkit.{room}" for room in ROOMS if room != "errors"},
    "sync": {"kernelkit.kaggle", "kernelkit.runs.watch"},
    "secrets": {"kernelkit.kaggle", "requests", "socket"},
    "preflight": {"kernelkit.kaggle"},
    "client": {"kernelkit.config", "kernelkit.notebook.render", "kernelkit.emulator"},
    "remote": {"kaggle", "kagglesdk", "kernelkit.runs.verify"},
    "push": {"kaggle", "kagglesdk", "kernelkit.runs.verify", "kernelkit.runs.store"},
    "places": {"kernelkit"},
    "verify": {"kernelkit.kaggle", "torch", "src_salt", "requests"},
    "outputs": {"kaggle", "kagglesdk"},
    "submission": {f"kernelkit.{room}" for room in ROOMS if room != "errors"},
    "ledger": {f"kernelkit.{room}" for room in ROOMS} - {"kernelkit.errors"},
    "history": {"kernelkit.runs.verify", "requests", "kagglesdk"},
    "causes": {"kernelkit"},
    "tracebacks": {"kernelkit"},
    "diagnose": {"kernelkit.kaggle", "kernelkit.runs.watch", "requests"},
    "doctor": {"kaggle", "kagglesdk", "kernelkit.runs.watch", "kernelkit.runs.store"},
    "probe": {"kaggle", "kagglesdk", "kernelkit.emulator"},
    "pipeline": {"kernelkit.cli", "kernelkit.console"},
    "speak": {"kaggle", "kagglesdk"},
    "cli": {"kaggle", "kagglesdk"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, `from x import y` also as x.y."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(room: str) -> set[str]:
    """What a room imports: a module, or a folder of them."""
    paths = [*PACKAGE.glob(f"{room}.py"), *PACKAGE.glob(f"{room}/*.py")]
    assert paths, room
    return {name for path in paths for name in imports(path)}


def test_every_room_is_on_the_plan() -> None:
    folders = {path.parent for path in PACKAGE.glob("*/*.py")}
    found = {path.stem for path in [*PACKAGE.glob("*.py"), *folders]}
    assert found - {"__init__", "emulator"} == set(ROOMS)
    assert {path.stem for path in (PACKAGE / "client").glob("*.py")} == {*CLIENT, "__init__"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_above_it(room: str) -> None:
    used = imports_of(room)
    ours = {name.split(".")[1] for name in used if name.startswith("kernelkit.")} & set(ROOMS)
    ours.discard(room)
    assert ours <= set(ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("part", CLIENT)
def test_a_part_of_the_client_imports_only_what_stands_above_it(part: str) -> None:
    used = imports(PACKAGE / "client" / f"{part}.py")
    ours = {name.split(".")[2] for name in used if name.count(".") > 1 and ".client." in name}
    assert ours <= set(CLIENT[: CLIENT.index(part)])


@pytest.mark.parametrize("room", sorted(NEVER))
def test_a_room_keeps_out_what_it_must_not_know(room: str) -> None:
    used = imports_of(room)
    forbidden = {f"{name}." for name in NEVER[room]}
    assert not {name for name in used if f"{name}.".startswith(tuple(forbidden))}


def test_the_local_kaggle_is_a_house_of_its_own() -> None:
    for path in (PACKAGE / "emulator").glob("*.py"):
        for name in imports(path):
            assert not name.startswith(("kaggle", "src_salt")), path
            inside = name.startswith("kernelkit.emulator") or not name.startswith("kernelkit")
            assert inside, f"{path} imports {name}"
    for path in [
        *PACKAGE.glob("*.py"),
        *(PACKAGE / "client").glob("*.py"),
        *(ROOT / "src_salt").glob("*.py"),
    ]:
        assert not any("emulator" in name for name in imports(path)), path


def test_the_workload_knows_nothing_of_the_tool() -> None:
    for path in (ROOT / "src_salt").glob("*.py"):
        assert not any(name.startswith(("kernelkit", "kaggle")) for name in imports(path)), path
