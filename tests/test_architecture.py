"""Imports go one way: app → serve, training; training → the lower rooms of serve; docs/architecture.md draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("app", "serve", "training", "benchmarks", "tests")

# The rooms of serve that training may enter.
LOWER = ("records", "copies", "errors", "settings", "schedule", "folder", "feedback", "policy", "engine")


def imports_of(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports anywhere, for type checking too; `from a import b` names `a.b`."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            names = [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in OURS)


def edges(folder: str) -> Iterator[tuple[str, str]]:
    """(file, module imported) of every file below a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in imports_of(path):
            yield str(path.relative_to(ROOT)), name


def test_serve_never_imports_training_or_the_application() -> None:
    assert [edge for edge in edges("serve") if edge[1].split(".")[0] != "serve"] == []


def test_training_enters_only_the_lower_rooms_of_serve() -> None:
    entered = [edge for edge in edges("training") if edge[1].split(".")[0] == "serve"]
    assert entered, "training imports nothing of serve: is the test looking in the right place?"
    assert [edge for edge in entered if edge[1].split(".")[1] not in LOWER] == []
    assert [edge for edge in edges("training") if edge[1].split(".")[0] not in ("serve", "training")] == []


@pytest.mark.parametrize("room", ["feedback", "policy", "engine"])
def test_lower_rooms_never_import_the_web(room: str) -> None:
    upper = ("web", "service", "live", "client", "doctor")
    assert [edge for edge in edges(f"serve/{room}") if edge[1].split(".")[1] in upper] == []


def test_records_and_errors_need_the_standard_library_alone() -> None:
    for name in ("records", "errors", "folder"):
        tree = ast.parse((ROOT / "serve" / f"{name}.py").read_text(encoding="utf-8"))
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert [m for m in modules if m.split(".")[0] not in sys.stdlib_module_names] == []


def test_a_relative_import_is_seen_by_these_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "serve" / "feedback" / "store.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..web import api\nfrom training import ppo\nimport serve.web.server\n")
    assert list(imports_of(file)) == ["serve.web.api", "training.ppo", "serve.web.server"]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_the_record_loads_neither_torch_nor_gradio() -> None:
    loaded = modules_after("import serve.feedback.store, serve.feedback.exchange, serve.feedback.snapshot")
    assert "serve.feedback.store" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "peft", "gradio", "fastapi"})


def test_the_server_answers_before_gradio_is_imported_and_without_peft() -> None:
    loaded = modules_after("import app, serve.web.server, serve.engine.local, training.scheduler")
    assert "serve.engine.local" in loaded
    assert loaded.isdisjoint({"gradio", "peft"})


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    assert modules_after("import app; app._parser()").isdisjoint(
        {"torch", "transformers", "gradio", "fastapi", "pandas"}
    )
