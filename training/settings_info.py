"""Every setting of a run in words: its value, its bounds and what it does, as config.py says it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from serve.records import SettingInfo


def settings_info(config: Any, path: str = "") -> list[SettingInfo]:
    """All settings of a `TrainingConfig` by their dotted names, such as `ppo.clip`, in the order of config.py.

    What `config` holds is what a run does that is told nothing.
    """
    words, found = field_docs(type(config)), []
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            found += settings_info(value, f"{path}{each.name}.")
        else:
            low, high = (each.metadata.get(bound) for bound in ("low", "high"))
            found.append(SettingInfo(path + each.name, value, low, high, words.get(each.name, "")))
    return found


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, which Python itself forgets."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[before.target.id] = " ".join(after.value.value.split())
    return found
