"""Makes docs/api.md from the code: `python -m docs.api`. tests/test_api_docs.py holds that the page is what it makes.

What an endpoint does is its docstring, what its body holds the text below each field.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel

from training.settings_info import field_docs

PAGE = Path(__file__).parent / "api.md"
HEAD = """# The HTTP API

Made from the code by `python -m docs.api`. Bodies and answers are JSON, times RFC 3339 in UTC; an error is
`{"error": {"code", "message"}}` with a fitting status, and its message says what to do. A voter is whoever the cookie
of the first answer names: a program with a cookie jar is one voter. Operators send `Authorization: Bearer TOKEN`, or
log in. `/v1` is OpenAI's API (`/v1/models`, `/v1/chat/completions`); the stock client works.

| call | who | does |
| --- | --- | --- |
"""


WHO = ("voter", "its voter", "operator", "all")
"""Of each router, in the order in which `serve.web.api.routers` gives them."""


def page(routers: Sequence[APIRouter]) -> str:
    """The whole page, from the routers that are mounted at /api."""
    found = [
        (who, route)
        for who, router in zip(WHO, routers, strict=True)
        for route in router.routes
        if isinstance(route, APIRoute)
    ]
    routes = [route for _, route in found]
    rows = [
        f"| `{method} /api{route.path}` | {who} | {_summary(route)} |"
        for who, route in found
        for method in sorted(route.methods or ())
    ]
    bodies = {body.__name__: body for route in routes if (body := _body(route)) is not None}
    parts = [HEAD + "\n".join(rows)]
    turn = bodies["ComparisonBody"].model_fields["messages"].annotation
    (message,) = get_args(turn)
    parts.append(f"## {message.__name__}\n\n{inspect.getdoc(message)}\n\n" + "\n".join(_fields(message)))
    for name, body in sorted(bodies.items()):
        calls = ", ".join(f"`{min(r.methods or ())} /api{r.path}`" for r in routes if _body(r) is body)
        parts.append(f"## {name}\n\n{inspect.getdoc(body)} For {calls}.\n\n" + "\n".join(_fields(body)))
    return "\n\n".join(parts) + "\n"


def _summary(route: APIRoute) -> str:
    words = inspect.getdoc(route.endpoint)
    assert words, f"{route.path} has no docstring"
    asked = [f"`{param.alias}`{_bounds(param.field_info.metadata)}" for param in route.dependant.query_params]
    named = f" Query: {', '.join(asked)}." if asked else ""
    return words.replace("\n", " ") + named


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {"ge": "≥", "le": "≤", "max_length": "characters ≤"}
    found = [f"{sign} {getattr(each, key)}" for each in metadata for key, sign in signs.items() if hasattr(each, key)]
    return f" ({', '.join(found)})" if found else ""


def _body(route: APIRoute) -> type[BaseModel] | None:
    for hint in get_type_hints(route.endpoint).values():
        for kind in (hint, *getattr(hint, "__args__", ())):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                return kind
    return None


def _fields(body: type[BaseModel]) -> list[str]:
    words = field_docs(body)
    properties: dict[str, Any] = body.model_json_schema()["properties"]
    return [
        f"- `{name}`: {_kind(schema)}{_default(body, name)}{' ' + words[name] if name in words else ''}"
        for name, schema in properties.items()
    ]


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " / ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    if "maxLength" in schema:
        bounds.append(f"≤ {schema['maxLength']:,} characters")
    return str(schema.get("type", "anything")) + (f" ({', '.join(bounds)})" if bounds else "")


def _default(body: type[BaseModel], name: str) -> str:
    field = body.model_fields[name]
    if field.is_required():
        return ", required."
    return "." if field.default in (None, [], False) else f", default {field.default!r}."


if __name__ == "__main__":
    from serve.web.api import routers
    from tests.fakes import FakeTraining

    PAGE.write_text(page(routers(None, FakeTraining(None), None)), encoding="utf-8")  # type: ignore[arg-type]
