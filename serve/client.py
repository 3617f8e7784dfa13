"""The command line's commands, as clients of the HTTP API: one code path, whether a server runs or not.

A running server is reached over the owner-only socket beside its database; without one, `app.py` hands in the same API
in-process. Each command returns what `--json` prints, and how to say it to a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve.errors import HustingsError
from serve.records import ACTIVE, Stage
from serve.sockets import short_path

_POLL_SECONDS = 0.5


class ApiError(HustingsError):
    """The API refused; its own sentence is the message."""

    def __init__(self, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.more = more
        """What else the API said, such as the run that is on."""


@dataclass(frozen=True)
class Result:
    """What a command has to say: `data` for programs, `text` for people, and the process's exit code."""

    data: Any
    text: str
    exit_code: int = 0


@contextlib.asynccontextmanager
async def over_socket(path: Path) -> AsyncIterator[Client | None]:
    """A client of the server that listens on `path`; None when none does. Raises ApiError when it is going away."""
    if not path.parent.is_dir():
        yield None
        return
    with short_path(path) as address:
        transport = httpx.AsyncHTTPTransport(uds=address)
        async with httpx.AsyncClient(transport=transport, base_url="http://hustings", timeout=None) as http:
            try:
                await http.get("/health")
            except httpx.ConnectError:
                yield None
            except httpx.TransportError as error:
                raise _gone(error) from error
            else:
                yield Client(http)


class Client:
    """The HTTP API, as the commands use it."""

    def __init__(self, http: httpx.AsyncClient, *, inline: bool = False) -> None:
        """`inline`: there is no server, so a training run lives and ends with this process."""
        self._http = http
        self.inline = inline

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """One call; its JSON. Raises ApiError with the server's sentence, or when the server goes away."""
        response = await self._request(method, path, **options)
        if response.is_error:
            raise _error(response)
        return response.json()

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise _gone(error) from error

    async def status(self) -> Result:
        """What serves, what is learned from, what runs."""
        versions = await self.call("GET", "/api/versions")
        runs = await self.call("GET", "/api/runs", params={"limit": 1})
        new_votes = await self._new_votes()
        health = None if self.inline else (await self._request("GET", "/health")).json()
        active = next((run for run in runs if run["status"] in ACTIVE), None)
        data = {"serving": versions["serving"], "new_votes": new_votes, "run": active, "server": health}
        lines = [
            f"serving    version {versions['serving']}",
            f"new votes  {new_votes}",
            f"run        {_describe_run(active) if active else 'none'}",
            f"server     {_describe_server(health)}",
        ]
        return Result(data, "\n".join(lines))

    async def _new_votes(self) -> int:
        """Votes since the last run, which the API tells among its metrics."""
        response = await self._request("GET", "/metrics")
        if response.is_error:
            raise _error(response)
        figures = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
        return int(float(figures["hustings_new_votes"]))

    async def versions(self) -> Result:
        """All versions."""
        data = await self.call("GET", "/api/versions")
        names = ["version", "status", "run", "parent", "created"]
        rows = [
            ["-" if version[name] is None else str(version[name]) for name in names] for version in data["versions"]
        ]
        return Result(data, _table([names, *rows]))

    async def board(self) -> Result:
        """Whether it is getting better, in sentences."""
        data = await self.call("GET", "/api/board")
        return Result(data, "\n".join(data["verdicts"]))

    async def log(self, limit: int) -> Result:
        """Who did what, newest first."""
        data = await self.call("GET", "/api/log", params={"limit": limit})
        lines = [_table([[deed["created"], deed["who"], deed["what"]] for deed in data])] if data else []
        if len(data) == limit:
            lines.append(f"(the newest {limit}; --limit shows more)")
        return Result(data, "\n".join(lines))

    async def schedule(self, changes: Mapping[str, Any]) -> Result:
        """When runs start by themselves and what then; with `changes`, after them."""
        data = await self.call("PATCH" if changes else "GET", "/api/schedule", json=dict(changes) if changes else None)
        names = [[entry["name"], entry["value"], "set at the start" if entry["fixed"] else ""] for entry in data]
        return Result(data, _table(names))

    async def promote(self, version: int) -> Result:
        """Make a version serve."""
        data = await self.call("POST", f"/api/versions/{version}/promote")
        return Result(data, f"version {data['serving']} serves")

    async def rollback(self) -> Result:
        """Return to the version that served before."""
        data = await self.call("POST", "/api/rollback")
        return Result(data, f"version {data['serving']} serves")

    async def export(self, format: str, style: str = "conversational") -> AsyncIterator[str]:
        """The record, as JSON lines, in pieces as they come."""
        try:
            async with self._http.stream("GET", "/api/export", params={"format": format, "style": style}) as response:
                if response.is_error:
                    await response.aread()
                    raise _error(response)
                async for piece in response.aiter_text():
                    yield piece
        except httpx.TransportError as error:
            raise _gone(error) from error

    async def import_(self, content: bytes, format: str, reading: str) -> Result:
        """Take JSON lines in, all or none."""
        data = await self.call("POST", "/api/import", params={"format": format, "as": reading}, content=content)
        return Result(data, "imported " + (", ".join(f"{count} {what}" for what, count in data.items()) or "nothing"))

    async def train(self, *, stages: Sequence[Stage] | None, settings: Mapping[str, Any], force: bool) -> Result:
        """Start a run and watch it to its end, with a progress bar. Ctrl-C asks whether it shall go on."""
        body = {"stages": stages, "settings": settings or None, "force": force}
        run = await self.call("POST", "/api/runs", json={k: v for k, v in body.items() if v is not None})
        try:
            run = await self._watch(run["id"])
        except asyncio.CancelledError:
            if task := asyncio.current_task():
                task.uncancel()
            if not self.inline and _leave_going(run["id"]):
                return Result(run, f"run {run['id']} goes on; `status` shows it", 130)
            await self.call("POST", f"/api/runs/{run['id']}/cancel")
            run = await self._watch(run["id"])
        return Result(run, _describe_end(run), {"succeeded": 0, "rejected": 3}.get(run["status"], 1))

    async def _watch(self, run_id: int) -> Any:
        from tqdm import tqdm

        shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        with tqdm(total=1.0, bar_format=shape, disable=None) as bar:
            while True:
                run = await self.call("GET", f"/api/runs/{run_id}")
                bar.n = run["progress"]
                bar.set_description_str(f"run {run_id} {run['stage'] or run['status']}", refresh=False)
                bar.set_postfix_str(_time_left(run), refresh=False)
                bar.refresh()
                if run["status"] not in ACTIVE:
                    return run
                await asyncio.sleep(_POLL_SECONDS)


def _error(response: httpx.Response) -> ApiError:
    try:
        return ApiError(**response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ApiError("error", f"the server answered {response.status_code}; its log says why")


def told(error: HustingsError) -> dict[str, Any]:
    """An error as `--json` prints it, which is how the API tells it."""
    more = error.more if isinstance(error, ApiError) else {}
    return {"error": {"code": error.code, "message": str(error), **more}}


def _gone(error: httpx.TransportError) -> ApiError:
    return ApiError("unavailable", f"the server went away ({error or type(error).__name__}); its log says why")


def _leave_going(run_id: int) -> bool:
    """On a server a run outlives the command that started it."""
    if not sys.stdin.isatty():
        return True
    return input(f"\nLeave run {run_id} going on the server? [Y/n] ").strip().lower() not in ("n", "no")


def _time_left(run: Mapping[str, Any]) -> str:
    seconds = run.get("eta_seconds")
    if seconds is None or run["status"] not in ACTIVE:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d} left"


def _describe_server(health: Mapping[str, Any] | None) -> str:
    if health is None:
        return "none runs"
    if "error" in health:
        return str(health["error"]["message"])
    return f"{health['model']}, {health['waiting']} waiting"


def _describe_run(run: Mapping[str, Any]) -> str:
    parts = [f"{run['id']} {run['status']}", run["stage"], f"{run['progress']:.0%}", _time_left(run)]
    return ", ".join(part for part in parts if part)


def _describe_end(run: Mapping[str, Any]) -> str:
    head = f"run {run['id']} {run['status']}"
    if run["version"] is not None:
        head += f": version {run['version']}"
    reasons = (run["report"] or {}).get("reasons", [])
    return "\n".join([head, *reasons, *([run["error"]] if run["error"] else [])])


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
