"""The README stays true: its file tree, commands, settings and links."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import app
from serve.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DRAWN_WHOLE = ("serve", "training", "benchmarks")
"""Folders of which the tree names every file; of others it says what they are for."""
MADE = ("benchmarks/results", "benchmarks/work")
"""Folders that fill by themselves."""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def drawn() -> Iterator[tuple[str, str]]:
    """(path, description) of each line of the tree."""
    folders: list[str] = []
    for line in section("Files").split("```")[1].strip("\n").splitlines():
        name, _, description = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        yield "".join([*folders, name]), description.strip()
        if name.endswith("/"):
            folders.append(name)


def present() -> set[str]:
    """Files of the folders that are drawn whole."""
    files = (path for folder in DRAWN_WHOLE for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    return {n for n in names if not n.startswith(MADE) and not n.endswith("__init__.py")}


def test_every_file_in_the_tree_is_there_and_said_to_be_for_something() -> None:
    lines = list(drawn())
    assert len(lines) > 30
    assert [path for path, _ in lines if not (ROOT / path).exists()] == []
    assert [path for path, description in lines if not description] == []
    assert len({path for path, _ in lines}) == len(lines)


def test_every_file_is_in_the_tree() -> None:
    assert present() - {path for path, _ in drawn()} == set()


def test_every_command_is_in_the_readme() -> None:
    (commands,) = (a for a in app._parser()._actions if isinstance(a, argparse._SubParsersAction))
    documented = set(re.findall(r"^\| `([a-z]+)[ `]", section("Command line"), re.MULTILINE))
    assert documented == set(commands.choices)


def shown(value: object) -> str:
    """A default as the settings table writes it."""
    if value is None:
        return "none"
    if isinstance(value, timedelta):
        if value < timedelta(hours=1):
            return f"{value / timedelta(minutes=1):g}m"
        hours = value / timedelta(hours=1)
        return f"{hours:g}h" if hours <= 24 else f"{hours / 24:g}d"
    return str(value)


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", section("Settings"), re.MULTILINE))
    expected = {name: shown(field.default) for name, field in Settings.model_fields.items()} | {"training": "–"}
    assert table == expected


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {name for line in targets for name in line.split()}
    named = set(re.findall(r"(?:`|^)make ([a-z]+)\b", README, re.MULTILINE))
    assert {"run", "test"} <= named <= known


def test_links_and_pictures_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
