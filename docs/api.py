"""Makes docs/api.md from the code: `python -m docs.api`. tests/test_api_docs.py holds that the page is what it makes.

What an endpoint does is its docstring; what its parameters, body and answer hold are their types, and the text below
each field.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from serve import errors
from serve.board import Board
from serve.feedback.entries import Deed, Exclusion, ImportCounts
from serve.records import Run, SettingInfo, VoteReceipt
from serve.schedule import Entry
from serve.web import metrics
from serve.web.api import comparison_json, version_json
from serve.web.limits import BODY_BYTES, IMPORT_BYTES
from training.settings_info import field_docs

PAGE = Path(__file__).parent / "api.md"
HEAD = f"""# The HTTP API

Made from the code by `python -m docs.api`. Bodies and answers are JSON, times RFC 3339 in UTC. A voter is whoever the
cookie of the first answer names: a program with a cookie jar is one voter. Operators send
`Authorization: Bearer TOKEN`, or log in. `/v1` is OpenAI's API; the stock client works.

A body has at most {BODY_BYTES // 2**20} MiB, an imported dataset {IMPORT_BYTES // 2**20} MiB; what is larger gets 413
(`too_large`). What was made is answered with 201, a run with 202, and where there is nothing to say with 204. Names in
braces are ids as other calls give them; those of runs and versions are whole numbers.

| call | who | does |
| --- | --- | --- |
| `GET /health` | all | [Whether the model can answer](#health-and-figures). |
| `GET /metrics` | operator, or this machine without a proxy | [Figures](#health-and-figures) for Prometheus. |
"""
EVENTS = """## Events

With `Accept: text/event-stream`, `POST /api/comparisons` sends the answers as they grow: `start` with the comparison,
its texts still empty; `delta` with `candidate_id` and the `text` that is new; for each candidate `end` with
`candidate_id` and `finish_reason`; or `error`, as below. All answers grow at one pace, so that none of them gives away
who writes it, and a vote may come before their end. With `"stream": true`, `POST /v1/chat/completions` sends what
OpenAI does."""
NAMED = """## By name, with `gradio_client`

`gradio_client.Client("http://localhost:7860").predict(…, api_name="/chat")` is one voter as long as it lives. Texts
have the bounds of bodies, and what cannot be used is refused with the sentence that HTTP would answer."""
ERRORS = """## Errors

An error is `{"error": {"code", "message"}}`, and its message says what to do. With `run_active` comes the number of the
run that is on, as `run`.

| status | code | means |
| --- | --- | --- |
"""
HEALTH = """## Health and figures

`GET /health` answers 200 once the model can answer, and 503 before: `status` (`ok` or `unavailable`), the `version`
that serves, the `model`, and how many requests are `waiting`.

`GET /metrics` has, as text:

"""

WHO = ("voter", "its voter", "operator", "all")
"""Of each router, in the order in which `serve.web.api.routers` gives them."""
ANSWERS: Mapping[Any, Sequence[str]] = {
    comparison_json: ("POST /api/comparisons", "GET /api/comparisons/{comparison_id}", "GET /api/queue/next"),
    VoteReceipt: ("POST /api/comparisons/{comparison_id}/vote",),
    Run: ("GET /api/runs", "GET /api/runs/{run_id}", "POST /api/runs/{run_id}/cancel"),
    version_json: ("GET /api/versions",),
    SettingInfo: ("GET /api/settings",),
    Entry: ("GET /api/schedule", "PATCH /api/schedule"),
    Board: ("GET /api/board",),
    Exclusion: ("GET /api/exclusions", "POST /api/exclusions"),
    Deed: ("GET /api/log",),
    ImportCounts: ("POST /api/import",),
}
"""What an answer holds, or each entry of one: a class, or what makes it and names its fields → the calls."""


@dataclass(frozen=True)
class Call:
    """One line of the page's table."""

    name: str
    """Such as `GET /api/me`."""
    who: str
    does: str
    body: type[BaseModel] | None
    parameters: Sequence[Mapping[str, Any]]
    """In query and headers, as OpenAPI has them."""


def page(api: Sequence[APIRouter], v1: APIRouter, named: Sequence[Callable[..., Any]]) -> str:
    """The whole page, from the routers that are mounted at /api, the one at /v1, and what `gradio_client` calls."""
    calls = [call for who, router in zip(WHO, api, strict=True) for call in _calls(who, "/api", router)]
    calls += _calls("voter", "/v1", v1)
    gone = {name for names in ANSWERS.values() for name in names} - {call.name for call in calls}
    assert not gone, f"there is no {', '.join(sorted(gone))} any more"
    rows = [f"| `{call.name}` | {call.who} | {call.does} |" for call in calls]
    parameters = [
        f"### `{call.name}`\n\n" + "\n".join(_parameter(told) for told in call.parameters)
        for call in calls
        if call.parameters
    ]
    bodies: dict[type[BaseModel], list[str]] = {}
    for call in calls:
        if call.body is not None:
            bodies.setdefault(call.body, []).append(call.name)
    by_name = dict(sorted(bodies.items(), key=lambda item: item[0].__name__))
    parts = [HEAD + "\n".join(rows), "## Parameters", *parameters]
    parts += ["## Bodies", *_sections(by_name, asked=True), "## Answers", *_sections(ANSWERS, asked=False)]
    parts += [EVENTS, NAMED, *map(_verb, named), ERRORS + "\n".join(_errors()), HEALTH + "\n".join(_figures())]
    return "\n\n".join(parts) + "\n"


def _calls(who: str, place: str, router: APIRouter) -> Iterator[Call]:
    described = get_openapi(title="", version="", routes=router.routes)["paths"]
    for route in router.routes:
        if not isinstance(route, APIRoute):
            continue
        words = inspect.getdoc(route.endpoint)
        assert words, f"{route.path} has no docstring"
        for method in sorted(route.methods or ()):
            told = described[route.path_format][method.lower()].get("parameters", ())
            yield Call(
                f"{method} {place}{route.path}",
                who,
                words.replace("\n", " "),
                _body(route),
                [parameter for parameter in told if parameter["in"] != "path"],
            )


def _body(route: APIRoute) -> type[BaseModel] | None:
    hints = get_type_hints(route.endpoint).values()
    return next((kind for hint in hints for kind in _classes(hint) if issubclass(kind, BaseModel)), None)


def _parameter(told: Mapping[str, Any]) -> str:
    """A line for it."""
    name = told["name"].title() if told["in"] == "header" else told["name"]
    words = f" {told['description']}" if "description" in told else ""
    return f"- `{name}` ({told['in']}): {_kind(told['schema'])}{_default(told['schema'], told['required'])}{words}"


def _sections(calls_of: Mapping[Any, Sequence[str]], *, asked: bool) -> list[str]:
    """One for each shape that calls take (`asked`) or give, and for those within it."""
    shapes = dict.fromkeys(part for shape in calls_of for part in _with_parts(shape))
    sections = []
    for shape in shapes:
        named = ", ".join(f"`{name}`" for name in calls_of.get(shape, ()))
        calls = f" {'For' if asked else 'From'} {named}." if named else ""
        if inspect.isclass(shape):
            title, fields = shape.__name__, "\n\n" + "\n".join(_fields(shape, asked=asked))
        else:
            title, fields = shape.__name__.removesuffix("_json").capitalize(), ""
        sections.append(f"### {title}\n\n{inspect.getdoc(shape)}{calls}{fields}")
    return sections


def _with_parts(shape: Any) -> list[Any]:
    """A shape, and before it those that its fields hold."""
    if not inspect.isclass(shape):
        return [shape]
    if issubclass(shape, BaseModel):
        hints = [field.annotation for field in shape.model_fields.values()]
    else:
        hints = list(get_type_hints(shape).values())
    return [*(part for hint in hints for kind in _classes(hint) for part in _with_parts(kind)), shape]


def _classes(hint: Any) -> Iterator[type]:
    """The classes with fields that a type names."""
    arguments = get_args(hint)
    for argument in arguments:
        yield from _classes(argument)
    if not arguments and inspect.isclass(hint) and (issubclass(hint, BaseModel) or is_dataclass(hint)):
        yield hint


def _fields(kind: type, *, asked: bool) -> list[str]:
    """A line for each; of what is asked it says what must be there, and what holds where nothing is said."""
    words, schema = field_docs(kind), TypeAdapter(kind).json_schema()
    required = schema.get("required", ())
    lines = []
    for name, held in schema["properties"].items():
        ending = _default(held, name in required) if asked else "."
        lines.append(f"- `{name}`: {_kind(held)}{ending}" + (f" {words[name]}" if name in words else ""))
    return lines


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " / ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {_kind(schema.get('items', {}))}{most}"
    if schema.get("format") == "date-time":
        return "time"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_kind(values)}"
    bounds = [
        f"{sign} {schema[key]:,}".removesuffix(".0")
        for key, sign in (("minimum", "≥"), ("maximum", "≤"))
        if key in schema and schema[key] < 2**53  # SQLite's largest says nothing to anybody
    ]
    if "maxLength" in schema:
        bounds.append(f"≤ {schema['maxLength']:,} characters")
    return str(schema.get("type", "anything")) + (f" ({', '.join(bounds)})" if bounds else "")


def _default(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return ", required."
    default = schema.get("default")
    return "." if default in (None, [], False, "") else f", default `{default}`."


def _verb(function: Callable[..., Any]) -> str:
    """A named endpoint: what it takes, and what it does."""
    hints = get_type_hints(function)
    taken = [name for name in inspect.signature(function).parameters if name != "request"]
    told = ", ".join(f"`{name}`: {_kind(TypeAdapter(hints[name]).json_schema())}" for name in taken)
    return f"### `/{function.__name__}`\n\n" + (f"{told}.\n\n" if told else "") + f"{inspect.getdoc(function)}"


def _errors() -> list[str]:
    """A row for each error that a call can answer with."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.HustingsError)]
    return [
        f"| {kind.status} | `{kind.code}` | {inspect.getdoc(kind)} |"
        for kind in kinds
        if kind is not errors.HustingsError and not issubclass(kind, errors.StartupError)
    ]


def _figures() -> list[str]:
    """A line for each figure of `/metrics`, as the code that makes it says what it is."""
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(metrics))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("MetricFamily"):
            name, words = (ast.literal_eval(argument) for argument in node.args[:2])
            ending = "_total" if node.func.id.startswith("Counter") else ""
            found.append((node.lineno, f"- `{name}{ending}`: {words}"))
    return [line for _, line in sorted(found)]


if __name__ == "__main__":
    from serve.web.api import routers
    from serve.web.named import verbs
    from serve.web.openai_api import create_router

    made = page(routers(None, None, None), create_router(None), verbs(None))  # type: ignore[arg-type]
    PAGE.write_text(made, encoding="utf-8")
