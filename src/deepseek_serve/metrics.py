"""Prometheus metrics, in a registry of their own so that several servers can live in one process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepseek.runtime.client import EngineClient
from deepseek_serve.limits import Admission

DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STATES = ("starting", "ready", "restarting", "failed", "stopped")


class Metrics:
    """What the server counts itself; the engine's numbers are read when somebody asks."""

    def __init__(self, client: EngineClient, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deepseek_http_requests", "HTTP requests answered.", ["route", "status"], registry=self.registry
        )
        self.duration = Histogram(
            "deepseek_http_request_duration_seconds",
            "From the request's head to the response's last byte.",
            ["route"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "deepseek_time_to_first_token_seconds",
            "From admission to the first token.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        tokens = Counter("deepseek_tokens", "Tokens of answered requests.", ["kind"], registry=self.registry)
        self.prompt_tokens = tokens.labels("prompt")
        self.cached_tokens = tokens.labels("prompt_cached")
        self.completion_tokens = tokens.labels("completion")
        in_use = Gauge("deepseek_admitted_answers", "Answers in work.", registry=self.registry)
        in_use.set_function(lambda: admission.in_use)
        capacity = Gauge("deepseek_admission_capacity", "Answers admitted at a time.", registry=self.registry)
        capacity.set(admission.capacity)
        self.registry.register(_EngineCollector(client))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engine's newest snapshot. Its counters begin again when the engine is restarted."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        client = self._client
        state = GaugeMetricFamily("deepseek_engine_state", "1 for the state the engine is in.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(client.state == name))
        yield state
        yield CounterMetricFamily("deepseek_engine_restarts", "Engine processes replaced.", value=client.restarts)
        stats = client.stats
        if stats is None:
            return
        for name, text, value in (
            ("waiting", "Requests that wait for their first step.", stats.waiting),
            ("running", "Requests in the running batch.", stats.running),
            ("kv_pages", "Pages of the KV cache.", stats.pages_total),
            ("kv_pages_free", "Pages of the KV cache that are free.", stats.pages_free),
        ):
            yield GaugeMetricFamily(f"deepseek_engine_{name}", text, value=value)
        for name, text, value in (
            ("steps", "Forward passes.", stats.steps),
            ("prompt_tokens", "Prompt tokens taken in.", stats.prompt_tokens),
            ("cached_prompt_tokens", "Prompt tokens found in the prefix cache.", stats.cached_prompt_tokens),
            ("generated_tokens", "Tokens generated.", stats.generated_tokens),
            ("drafted_tokens", "Tokens guessed by speculation.", stats.drafted_tokens),
            ("accepted_tokens", "Guessed tokens that became part of answers.", stats.accepted_tokens),
            ("preemptions", "Sequences put back for lack of memory.", stats.preemptions),
            ("finished", "Requests finished.", stats.finished),
            ("cancelled", "Requests cancelled.", stats.cancelled),
            ("failed", "Requests failed.", stats.failed),
        ):
            yield CounterMetricFamily(f"deepseek_engine_{name}", text, value=value)
