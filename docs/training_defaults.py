"""Fills the brackets in docs/training.md from the code: `python -m docs.training_defaults`.

A line of the page that begins with a name and a bracket, such as "- `ppo.clip` ()", gets that setting's default and
bounds; a name in capitals, such as "- `ppo.KL_SLACK` ()", is a constant of that module in training/.
tests/test_training_docs.py holds that the page says what the code says, and leaves no setting out.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from training.config import TrainingConfig

PAGE = Path(__file__).parent / "training.md"
NAMED = re.compile(r"^- `([\w.]+)` \([^)]*\)", re.MULTILINE)


def settings(kind: Any = TrainingConfig, path: str = "") -> dict[str, str]:
    """Default and bounds of every setting by its dotted name, such as `ppo.clip`."""
    found: dict[str, str] = {}
    for each in fields(kind):
        if is_dataclass(each.default):
            found |= settings(type(each.default), f"{path}{each.name}.")
        else:
            found[path + each.name] = _described(each)
    return found


def constant(name: str) -> str:
    """A number fixed in the code. Raises KeyError for a name that no setting and no constant has."""
    module, _, attribute = name.rpartition(".")
    if not attribute.isupper():
        raise KeyError(f"docs/training.md explains {name}, which is no setting")
    path = module if module.startswith("serve.") else f"training.{module}"
    return f"fixed: {_shown(vars(importlib.import_module(path))[attribute])}"


def fill(page: str) -> str:
    """The page with every bracket made anew."""
    known = settings()
    return NAMED.sub(lambda found: f"- `{found[1]}` ({known.get(found[1]) or constant(found[1])})", page)


def _described(each: Field[Any]) -> str:
    bounds = f"; {_shown(each.metadata['low'])} to {_shown(each.metadata['high'])}" if "low" in each.metadata else ""
    return f"default {_shown(each.default)}{bounds}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if value is None or isinstance(value, bool):
        return {None: "none", False: "off", True: "on"}[value]
    return f"{int(value) if value == int(value) else value:,}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
