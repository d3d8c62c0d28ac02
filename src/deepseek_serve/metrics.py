"""Prometheus metrics, in a registry of their own so that several servers can live in one process.

Labels are of this server's making: routes, statuses, codes, the names of served models. Nothing that a client sends
becomes one, and keys do not either (``/v1/usage`` has them).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepseek.runtime.client import EngineClient
from deepseek_serve.admission import Admission
from deepseek_serve.limits import Limits
from deepseek_serve.models import ServedModel
from deepseek_serve.observability.histogram import (
    BETWEEN_TOKENS,
    FIRST_TOKEN,
    LAG,
    QUEUE,
    WHOLE,
    Distribution,
    ModelHistogram,
    ProcessHistogram,
)
from deepseek_serve.observability.record import RequestRecord
from deepseek_serve.routing import Reason
from deepseek_serve.store.store import Store

if TYPE_CHECKING:
    from deepseek_serve.batches.runner import BatchRunner

DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
REFUSALS = ("requests", "tokens", "concurrency", "quota", "answers", "prompt_tokens", "draining")
FINISH_REASONS = ("stop", "length", "cancelled", "error")
REASONS: tuple[Reason, ...] = ("prefix", "load")
ENGINE = ["model", "replica"]
STATES = ("starting", "ready", "restarting", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """What is counted of one model's answers. Lines of batches do not count in the times: they wait on purpose."""

    first_token: Distribution
    between_tokens: Distribution
    whole: Distribution
    queue: Distribution
    prompt_tokens: Counter
    cached_tokens: Counter
    generation_tokens: Counter
    answers: Mapping[str, Counter]


class Metrics:
    """What the server counts itself; the engine's numbers are read when somebody asks."""

    def __init__(self, models: Sequence[ServedModel], admission: Admission, limits: Limits) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second sample for each counter, which nobody reads
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
        self.errors = Counter(
            "deepseek_http_errors", "Error responses, by status and code.", ["status", "code"], registry=self.registry
        )
        self._first_token = ModelHistogram(
            "deepseek_time_to_first_token_seconds", "From the request's coming to an answer's first token.", FIRST_TOKEN
        )
        self._between_tokens = ModelHistogram(
            "deepseek_inter_token_latency_seconds", "Between two tokens of an answer.", BETWEEN_TOKENS
        )
        self._whole = ModelHistogram(
            "deepseek_e2e_request_latency_seconds", "From the request's coming to the end of its answers.", WHOLE
        )
        self._queue = ModelHistogram(
            "deepseek_request_queue_time_seconds", "From the engine's getting an answer to its first step.", QUEUE
        )
        lag = ProcessHistogram(
            "deepseek_event_loop_lag_seconds", "By how much the server's event loop wakes too late.", LAG
        )
        self.lag = lag.distribution
        for collector in (self._first_token, self._between_tokens, self._whole, self._queue, lag):
            self.registry.register(collector)
        self._prompt_tokens, self._cached_tokens, self._generation_tokens = (
            Counter(f"deepseek_{name}", text, ["model"], registry=self.registry)
            for name, text in (
                ("prompt_tokens", "Prompt tokens of requests that have ended."),
                ("cached_prompt_tokens", "Of these, tokens found in the prefix cache."),
                ("generation_tokens", "Tokens of answers that have ended."),
            )
        )
        self._answers = Counter(
            "deepseek_answers", "Answers that have ended, by why.", ["model", "finish_reason"], registry=self.registry
        )
        self._models: dict[str, ModelMetrics] = {}
        ProcessCollector(registry=self.registry)
        self.batch_lines = Counter(
            "deepseek_batch_lines", "Lines of batches that were run.", ["outcome"], registry=self.registry
        )
        for outcome in ("completed", "failed"):
            self.batch_lines.labels(outcome)
        in_use = Gauge("deepseek_admitted_answers", "Answers in work.", registry=self.registry)
        in_use.set_function(lambda: admission.in_use)
        capacity = Gauge("deepseek_admission_capacity", "Answers admitted at a time.", registry=self.registry)
        capacity.set(admission.capacity)
        tasks = Gauge("deepseek_tasks", "Tasks of the event loop.", registry=self.registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        waiting = Gauge("deepseek_waiting_prompt_tokens", "Prompt tokens that wait for a step.", registry=self.registry)
        waiting.set_function(lambda: admission.prompt_tokens)
        self.registry.register(_EngineCollector(models))
        self.registry.register(_RefusalCollector(admission, limits))
        for model in models:
            self.of(model)

    def of(self, model: ServedModel) -> ModelMetrics:
        """What is counted of a model's answers."""
        found = self._models.get(model.name)
        if found is None:
            found = self._models[model.name] = ModelMetrics(
                first_token=self._first_token.of(model.name),
                between_tokens=self._between_tokens.of(model.name),
                whole=self._whole.of(model.name),
                queue=self._queue.of(model.name),
                prompt_tokens=self._prompt_tokens.labels(model.name),
                cached_tokens=self._cached_tokens.labels(model.name),
                generation_tokens=self._generation_tokens.labels(model.name),
                answers={reason: self._answers.labels(model.name, reason) for reason in FINISH_REASONS},
            )
        return found

    def forget(self, model: ServedModel) -> None:
        """The model is gone, and its numbers with it: names of models come and go, labels must not only come."""
        if self._models.pop(model.name, None) is None:
            return
        for histogram in (self._first_token, self._between_tokens, self._whole, self._queue):
            histogram.forget(model.name)
        for counter in (self._prompt_tokens, self._cached_tokens, self._generation_tokens):
            counter.remove(model.name)
        for reason in FINISH_REASONS:
            self._answers.remove(model.name, reason)

    def answered(self, record: RequestRecord) -> None:
        """Count a response, whatever it was."""
        self.requests.labels(record.route, str(record.status)).inc()
        self.duration.labels(record.route).observe(record.ended - record.started)
        if record.status >= 400:
            self.errors.labels(str(record.status), record.error_code or "none").inc()

    def watch_batches(self, runner: BatchRunner) -> None:
        """Show what batches do."""
        gauges = (
            ("batches_in_work", "Batches in work.", lambda: runner.active),
            ("batch_lines_in_work", "Lines of batches in work.", lambda: runner.in_flight),
        )
        for name, text, value in gauges:
            Gauge(f"deepseek_{name}", text, registry=self.registry).set_function(value)

    def watch_store(self, store: Store) -> None:
        """Show whether the store works, and what waits for it."""
        gauges = (
            ("store_up", "1 if the last use of the database went well.", lambda: float(store.up)),
            ("usage_rows_waiting", "Rows of usage that are not yet in the database.", lambda: store.usage.waiting),
        )
        for name, text, value in gauges:
            Gauge(f"deepseek_{name}", text, registry=self.registry).set_function(value)
        self.registry.register(_StoreCollector(store))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _StoreCollector(Collector):
    """What the store has counted."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        usage = self._store.usage
        yield CounterMetricFamily("deepseek_store_failures", "Uses of the database that failed.", self._store.failures)
        yield CounterMetricFamily(
            "deepseek_usage_lost_requests", "Requests missing in the usage: the database was away too long.", usage.lost
        )


class _RefusalCollector(Collector):
    """Why requests were refused."""

    def __init__(self, admission: Admission, limits: Limits) -> None:
        self._admission = admission
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        refused = CounterMetricFamily("deepseek_refused_requests", "Requests refused, by reason.", labels=["reason"])
        counts = self._admission.refusals + self._limits.refusals
        for reason in dict.fromkeys((*REFUSALS, *counts)):
            refused.add_metric([reason], counts[reason])
        yield refused
        failures = self._limits.windows.failures
        yield CounterMetricFamily("deepseek_limits_store_failures", "Times that Redis failed.", value=failures)


GAUGES = (
    ("waiting", "Requests that wait for their first step."),
    ("running", "Requests in the running batch."),
    ("pages_total", "Pages of the KV cache."),
    ("pages_free", "Pages of the KV cache that are free."),
    ("kv_spill_pages", "Pages that lie in the spill file."),
    ("adapters", "Adapters loaded."),
    ("adapter_bytes", "Memory of adapters, those that running requests still use included."),
)
COUNTERS = (
    ("steps", "Forward passes."),
    ("prompt_tokens", "Prompt tokens taken in."),
    ("cached_prompt_tokens", "Prompt tokens found in the prefix cache."),
    ("generated_tokens", "Tokens generated."),
    ("drafted_tokens", "Tokens guessed by speculation."),
    ("accepted_tokens", "Guessed tokens that became part of answers."),
    ("preemptions", "Sequences put back for lack of memory."),
    ("kv_spill_moved", "Pages moved to the spill file."),
    ("kv_spill_checked", "Pages of the spill file read back and checked."),
    ("kv_spill_corrupt", "Pages of the spill file that were corrupt and computed again."),
    ("finished", "Requests finished."),
    ("cancelled", "Requests cancelled."),
    ("failed", "Requests failed."),
)
READING = (
    ("outputs", "Attention outputs computed sparsely: one per row, layer and query head."),
    ("context_tokens", "Tokens that dense attention would have read for these, per KV head."),
    ("read_tokens", "Tokens that were read."),
    ("read_bytes", "Bytes of keys, values and index that were read."),
    ("dense_bytes", "Bytes that dense attention would have read."),
    ("pieces", "Stretches of contexts that were chosen from."),
    ("dense_pieces", "Stretches that were read whole, most of them being chosen."),
    ("unread_weight", "Sum of the outputs' estimated shares of weight that was not read."),
    ("estimated_error", "Sum of the outputs' estimated relative errors."),
    ("error_bound", "Sum of the upper bounds of these errors."),
    ("prompt_pages", "Pages that blocks of prompt rows could choose from."),
    ("prompt_pages_read", "Pages that they read."),
    ("checks", "Outputs that were computed densely too, to compare."),
    ("checked_error", "Sum of the relative errors measured in these."),
    ("violations", "Checks in which the error was above its bound."),
)
NAMES = {"pages_total": "kv_pages", "pages_free": "kv_pages_free"}


class _EngineCollector(Collector):
    """The engines' newest snapshots. The counters of an engine begin again when it is restarted."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "deepseek_engine_state", "1 for the state the engine is in.", labels=[*ENGINE, "state"]
        )
        restarts = CounterMetricFamily("deepseek_engine_restarts", "Engine processes replaced.", labels=ENGINE)
        routed = CounterMetricFamily(
            "deepseek_routed_requests", "Answers given to a replica, by why to this one.", labels=["model", "reason"]
        )
        for labels, replica in self._replicas():
            for name in STATES:
                state.add_metric([*labels, name], float(replica.state == name))
            restarts.add_metric(labels, replica.restarts)
        for model in self._models:
            for reason in REASONS:
                routed.add_metric([model.name, reason], model.router.counts[reason])
        yield from (state, restarts, routed)
        yield from self._processes()
        for kind, fields in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, text in fields:
                family = kind(f"deepseek_engine_{NAMES.get(field, field)}", text, labels=ENGINE)
                for labels, replica in self._replicas():
                    if replica.stats is not None:
                        family.add_metric(labels, getattr(replica.stats, field))
                yield family
        for field, text in READING:
            family = CounterMetricFamily(f"deepseek_engine_sparse_{field}", text, labels=ENGINE)
            for labels, replica in self._replicas():
                if replica.stats is not None:
                    family.add_metric(labels, getattr(replica.stats.attention, field))
            yield family

    def _replicas(self) -> Iterator[tuple[list[str], EngineClient]]:
        for model in self._models:
            for index, replica in enumerate(model.replicas):
                yield [model.name, str(index)], replica

    def _processes(self) -> Iterator[Metric]:
        """The engines' processes, as the system sees them."""
        prefix = "deepseek_engine_process"
        memory = GaugeMetricFamily(f"{prefix}_resident_memory_bytes", "Memory of engine processes.", labels=ENGINE)
        cpu = CounterMetricFamily(f"{prefix}_cpu_seconds", "Processor time of engine processes.", labels=ENGINE)
        files = GaugeMetricFamily(f"{prefix}_open_fds", "Open files of engine processes.", labels=ENGINE)
        for labels, replica in self._replicas():
            if replica.pid is None:
                continue
            try:
                process = psutil.Process(replica.pid)
                times = process.cpu_times()
                rss, descriptors = process.memory_info().rss, process.num_fds()
            except psutil.Error:  # it has just ended
                continue
            memory.add_metric(labels, rss)
            cpu.add_metric(labels, times.user + times.system)
            files.add_metric(labels, descriptors)
        yield from (memory, cpu, files)
