"""Every setting of a run in words: its default, its bounds and what it does, as config.py says it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import Field, fields, is_dataclass
from typing import Any

from serve.records import SettingInfo
from training.config import TrainingConfig


def settings_info(kind: Any = TrainingConfig, path: str = "") -> list[SettingInfo]:
    """All settings by their dotted names, such as `ppo.clip`, in the order of config.py."""
    words, found = field_docs(kind), []
    for each in fields(kind):
        if is_dataclass(each.default):
            found += settings_info(type(each.default), f"{path}{each.name}.")
        else:
            low, high = (each.metadata.get(bound) for bound in ("low", "high"))
            found.append(SettingInfo(path + each.name, _plain(each), low, high, words.get(each.name, "")))
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


def _plain(each: Field[Any]) -> Any:
    return list(each.default) if isinstance(each.default, tuple) else each.default
