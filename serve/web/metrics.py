"""`GET /metrics` in Prometheus' text format: read from the record and the engine when it is asked for."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.service import Service, Training


class Responses:
    """A pure-ASGI layer that counts responses by status."""

    def __init__(self, app: ASGIApp, counts: Count[int]) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, count)


class HustingsCollector(Collector):
    """The server's figures, as they are now. Blocking: it reads the record."""

    def __init__(self, service: Service, training: Training, responses: Count[int]) -> None:
        self._service = service
        self._training = training
        self._responses = responses

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        service, due = self._service, self._training.due()
        yield GaugeMetricFamily("hustings_ready", "1 when the model can answer.", value=int(service.ready))
        yield GaugeMetricFamily("hustings_serving_version", "The version that serves.", value=service.serving)
        if service.ready:
            yield GaugeMetricFamily(
                "hustings_waiting", "Requests without a place in the batch.", value=service.engine.waiting
            )
        yield GaugeMetricFamily("hustings_standing_votes", "Standing votes.", value=service.store.standing_votes())
        yield GaugeMetricFamily("hustings_new_votes", "Votes since the last run.", value=due.new_votes)
        runs = GaugeMetricFamily("hustings_runs", "Training runs by status.", labels=["status"])
        for run_status, number in service.store.runs_by_status().items():
            runs.add_metric([run_status], number)
        yield runs
        yield CounterMetricFamily("hustings_tokens", "Tokens generated.", value=service.counts["tokens"])
        answers = CounterMetricFamily("hustings_answers", "Answers by finish reason.", labels=["finish_reason"])
        for reason in ("stop", "length", "cancelled", "error"):
            answers.add_metric([reason], service.counts[f"answers_{reason}"])
        yield answers
        responses = CounterMetricFamily("hustings_http_responses", "HTTP responses by status.", labels=["status"])
        for status, number in sorted(self._responses.items()):
            responses.add_metric([str(status)], number)
        yield responses


def exposition(collector: HustingsCollector) -> bytes:
    """The figures as text."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def is_direct_loopback(scope: Scope) -> bool:
    """Whether this machine asks itself, with no proxy in between that would lend its address to a stranger."""
    client = scope.get("client")
    headers = Headers(scope=scope)
    proxied = any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return client is not None and not proxied and (client[0].startswith("127.") or client[0] == "::1")
