"""The rooms of the code and the arrows between them: who may import whom, checked on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

#: room -> rooms of ours it may import; a room is a package or module directly below ``controlplane``, or a top folder.
#: The same map stands in ``controlplane/README.md``.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "failpoints": set(),
    "settings": set(),
    "domain": {"errors"},
    "workflows": {"errors", "domain"},
    "ports": {"domain", "workflows"},
    "db": {"errors", "domain", "failpoints"},
    "comfy": {"errors", "failpoints"},
    "providers": {"errors", "ports", "domain", "workflows", "comfy"},
    "storage": {"errors", "settings", "ports", "domain", "failpoints"},
    "launchers": {"errors", "ports", "domain"},
    "internet": {"errors", "ports", "domain"},
    "services": {"errors", "settings", "ports", "domain", "workflows", "db", "failpoints"},
    "api": {"errors", "settings", "services", "domain", "workflows", "ports", "internet", "failpoints"},
    "app": {
        "errors", "settings", "ports", "domain", "workflows", "db", "comfy", "providers", "storage", "launchers",
        "services", "api", "internet", "failpoints",
    },
    "client": {"errors"},
    "cli": {"errors", "settings", "app", "client", "domain", "workflows", "comfy"},
    "comfy_nodes": set(),
    "pod_images": {"comfy_nodes"},
    "sketch_base": {"comfy_nodes"},
    "bench": {"comfy_nodes", "sketch_base", "client", "cli", "db", "domain", "errors"},
}  # fmt: skip

TOP_FOLDERS = ("controlplane", "comfy_nodes", "pod_images", "sketch_base", "bench")


def sources() -> Iterator[Path]:
    for folder in TOP_FOLDERS:
        yield from sorted((REPOSITORY / folder).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a dotted path such as ``("controlplane", "db", "jobs")``; None for the package root itself."""
    if parts[0] != "controlplane":
        return parts[0] if parts[0] in TOP_FOLDERS else None
    return parts[1] if len(parts) > 1 else None


def module_parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every name that ``path`` imports as dotted parts, with its line; relative imports are resolved first."""
    package = module_parts(path)
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((tuple(alias.name.split(".")), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = base + tuple(node.module.split(".")) if node.module else base
            yield from (((*module, alias.name), node.lineno) for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours it imports."""
    known = {".".join(module_parts(path)) for path in sources()}
    edges: dict[str, set[str]] = {}
    for path in sources():
        targets = set()
        for parts, _ in imports(path):
            name = ".".join(parts)
            if name not in known:  # a name inside a module
                name = ".".join(parts[:-1])
            if name in known:
                targets.add(name)
        edges[".".join(module_parts(path))] = targets - {".".join(module_parts(path))}
    return edges


def test_every_import_follows_an_arrow_of_the_map() -> None:
    wrong = []
    for path in sources():
        here = room_of(module_parts(path))
        if here is None or here == "__main__":
            continue
        for parts, line in imports(path):
            there = room_of(parts)
            if there is None or there in (here, "__version__"):
                continue
            if there not in ARROWS.get(here, set()):
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: {here} must not import {there}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_on_the_map() -> None:
    rooms = {room_of(module_parts(path)) for path in sources()} - {None, "__main__"}
    assert rooms <= set(ARROWS), f"rooms without an entry: {sorted(str(room) for room in rooms - set(ARROWS))}"


def test_no_module_is_part_of_an_import_cycle() -> None:
    edges = graph()
    done: set[str] = set()
    trail: list[str] = []

    def visit(module: str) -> None:
        if module in trail:
            pytest.fail(" -> ".join([*trail[trail.index(module) :], module]))
        if module in done:
            return
        trail.append(module)
        for target in sorted(edges.get(module, ())):
            visit(target)
        trail.pop()
        done.add(module)

    for module in edges:
        visit(module)


def test_the_node_pack_imports_itself_only_relatively() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in sorted((REPOSITORY / "comfy_nodes").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("comfy_nodes"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("comfy_nodes") for alias in node.names))
    ]
    assert not wrong, f"in ComfyUI the pack has another name; import relatively: {wrong}"


def test_sql_lives_in_the_db_room_only() -> None:
    # The bench fills a database with a past of a million jobs, which no part of the product ever does.
    allowed = {"db", "bench"}
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in sources()
        if room_of(module_parts(path)) not in allowed
        for parts, line in imports(path)
        if parts[0] == "sqlalchemy" and parts[1:] != ("Connection",)
    ]
    assert not wrong, f"SQL outside db/: {wrong}"


def test_every_module_opens_with_one_sentence() -> None:
    missing = [
        str(path.relative_to(REPOSITORY))
        for path in sources()
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert not missing
