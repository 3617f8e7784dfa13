"""The HTTP API as the benchmark's people use it: every request is counted, and every failure kept."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx

ATTEMPTS = 3
"""A person tries again; each failed attempt is counted all the same."""
PATIENCE = 1.0
"""Seconds before the second attempt; twice as long before the third."""

T = TypeVar("T")


@dataclass
class Traffic:
    """All requests of one arm. Thread-safe."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def sent(self) -> None:
        """Count a request."""
        with self._lock:
            self.requests += 1

    def failed(self, what: str) -> None:
        """Keep a failure."""
        with self._lock:
            self.failures.append(what)


class RequestFailed(RuntimeError):
    """No answer, or one that is not 2xx; already counted."""


class Client:
    """One person with a cookie jar of their own; with `token`, an operator."""

    def __init__(
        self, url: str, traffic: Traffic, *, token: str | None = None, cookies: dict[str, str] | None = None
    ) -> None:
        self._traffic = traffic
        self._http = httpx.Client(
            base_url=url,
            cookies=cookies,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=httpx.Timeout(600.0, connect=10.0),
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # plain HTTP: loading certificates would only take time
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def cookies(self) -> dict[str, str]:
        """What makes this person the same voter next time."""
        return dict(self._http.cookies)

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """One request, its JSON answer. Raises RequestFailed, counted."""
        self._traffic.sent()
        headers = {"Idempotency-Key": key} if key else None
        try:
            response = self._http.request(method, path, json=body, headers=headers)
            response.raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            raise self._failed(f"{method} {path}: {error.response.status_code} {error.response.text[:300]}") from error
        except (httpx.TransportError, json.JSONDecodeError) as error:
            raise self._failed(f"{method} {path}: {type(error).__name__} {error}") from error

    def compare(self, prompt: str, *, max_tokens: int, temperature: float) -> dict[str, Any]:
        """Ask, and get a comparison of two finished candidates."""
        body = {"messages": _user(prompt), "max_tokens": max_tokens, "temperature": temperature}
        comparison: dict[str, Any] = self.call("POST", "/api/comparisons", body)
        return comparison

    def vote(self, comparison_id: str, body: dict[str, Any], *, key: str) -> dict[str, Any]:
        """Judge a comparison; with the same key, the same answer."""
        receipt: dict[str, Any] = self.call("POST", f"/api/comparisons/{comparison_id}/vote", body, key=key)
        return receipt

    def complete(self, model: str, prompt: str, *, seed: int, max_tokens: int, temperature: float) -> tuple[str, str]:
        """A chat completion's text and finish reason."""
        body = {
            "model": model,
            "messages": _user(prompt),
            "seed": seed,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        choice = self.call("POST", "/v1/chat/completions", body)["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

    def stream(
        self, prompt: str, *, max_tokens: int, temperature: float, model: str = "hustings"
    ) -> Iterator[dict[str, Any]]:
        """A streamed chat completion, chunk by chunk. Raises RequestFailed if it breaks or ends without `[DONE]`."""
        self._traffic.sent()
        body = {
            "model": model,
            "messages": _user(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
        }
        path = "/v1/chat/completions"
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.is_error:
                    response.read()
                response.raise_for_status()
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield _chunk(line)
        except httpx.HTTPStatusError as error:
            raise self._failed(f"stream {path}: {error.response.status_code} {error.response.text[:300]}") from error
        except (httpx.TransportError, ValueError) as error:
            raise self._failed(f"stream {path}: {type(error).__name__} {error}") from error
        raise self._failed(f"stream {path}: ended without [DONE]")

    def _failed(self, what: str) -> RequestFailed:
        self._traffic.failed(what)
        return RequestFailed(what)


def chunk_version(chunk: dict[str, Any]) -> int | None:
    """Which version writes this stream, as the chunk says by its model's name."""
    for name in (chunk.get("model"), chunk.get("system_fingerprint")):
        if found := re.search(r"v(\d+)$", str(name)):
            return int(found[1])
    return None


def persist(call: Callable[[], T]) -> T:
    """Try again a little later, as people do; the last failure is raised."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except RequestFailed:
            time.sleep(PATIENCE * attempt)
    return call()


def _user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _chunk(line: str) -> dict[str, Any]:
    chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
    if "error" in chunk:
        raise ValueError(f"error event {chunk['error']}")
    return chunk
