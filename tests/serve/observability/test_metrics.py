"""The real /metrics: what the dashboard, the alerts and the documentation name is there; labels stay bounded."""

from __future__ import annotations

import json
import re
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deepseek_serve.observability.histogram import Distribution
from deepseek_serve.observability.process import raise_file_limit
from tests.serve.conftest import MODEL, ROOT, Server, chat_body, running_server
from tests.serve.observability.promql import selectors

CHAT = "/v1/chat/completions"
DASHBOARD = ROOT / "deploy/grafana/deepseek.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
BY_PROMETHEUS = {"up": {"job"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that has answered, refused, failed and lost a client."""
    with running_server(max_sequences=4) as running:
        with running.client() as http:
            for _ in range(2):
                assert http.post(CHAT, json=chat_body("x" * 200)).status_code == 200
            assert http.post(CHAT, json=chat_body(n=4)).status_code == 200
            with http.stream("POST", CHAT, json=chat_body("[long][slow]", n=4, stream=True)) as response:
                lines = response.iter_lines()
                next(lines)
                assert http.post(CHAT, json=chat_body()).status_code == 503
            running.wait_metric("deepseek_admitted_answers", 0)
            assert http.post(CHAT, json=chat_body("[nan]")).status_code == 500
        running.wait_metric("deepseek_admitted_answers", 0)
        time.sleep(0.3)  # a look at the event loop, a ping to the engine
        yield running


def samples_of(server: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    with server.client() as http:
        text = http.get("/metrics").text
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


def value_of(server: Server, name: str, **labels: str) -> float:
    return sum(value for found, value in samples_of(server)[name] if labels.items() <= found.items())


def dashboard_expressions() -> dict[str, str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = {}
    for panel in panels:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def alert_expressions() -> dict[str, str]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_selectors_of_expressions() -> None:
    expression = (
        'histogram_quantile(0.95, sum by (le, a) (rate(m_bucket{b=~"x",c!="y"}[5m]))) / n > 1e3 and deriv(o[1m])'
    )
    assert list(selectors(expression)) == [
        ("m_bucket", {"a", "b", "c", "le"}),
        ("n", {"a", "le"}),
        ("o", {"a", "le"}),
    ]


@pytest.mark.parametrize("source", [dashboard_expressions, alert_expressions])
def test_every_expression_reads_what_is_there(server: Server, source: Any) -> None:
    samples = samples_of(server)
    expressions = source()
    assert len(expressions) >= 10
    for where, expression in expressions.items():
        read = list(selectors(expression))
        assert read, where
        for name, labels in read:
            known = BY_PROMETHEUS.get(name)
            if known is None:
                assert name in samples, f"{where}: there is no {name}"
                known = {label for found, _ in samples[name] for label in found}
            assert labels <= known, f"{where}: {name} has no labels {labels - known}"


def test_values_that_expressions_ask_for_exist(server: Server) -> None:
    """A label's value that is misspelt finds nothing, silently."""
    samples = samples_of(server)
    for where, expression in {**dashboard_expressions(), **alert_expressions()}.items():
        for name, label, value in re.findall(r'(\w+)\{[^}]*?(\w+)="([^"$]+)"', expression):
            if label not in ("job", "code"):
                assert any(found.get(label) == value for found, _ in samples[name]), f"{where}: {name} {label}={value}"
        for value in re.findall(r'reason=~"([^"]+)"', expression):
            known = {found["reason"] for found, _ in samples["deepseek_refused_requests_total"]}
            assert set(value.split("|")) <= known, where


def test_dashboard_is_importable() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert board["title"] and board["uid"] and board["schemaVersion"] >= 36 and "id" not in board
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) - {"__rate_interval"}
    assert used == variables
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) and all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in board["panels"])


def test_scrape_configuration_matches_the_server(server: Server) -> None:
    config = yaml.safe_load((ALERTS.parent / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == [ALERTS.name]
    (job,) = config["scrape_configs"]
    with server.client() as http:
        assert http.get(job["metrics_path"]).status_code == 200


def test_documentation_has_every_metric(server: Server) -> None:
    """The table in docs/operations.md and /metrics name the same metrics with the same labels."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text.partition("<!-- metrics -->")[2].partition("<!-- end of metrics -->")[0]
    documented = {}
    for name, labels in re.findall(r"^\| `([\w:]+)(?:\{([\w, ]*)\})?`", table, re.MULTILINE):
        documented[name] = {label.strip() for label in labels.split(",") if label}
    real = {}
    for name, found in samples_of(server).items():
        if name.endswith(("_count", "_sum")) and name.rpartition("_")[0] + "_bucket" in samples_of(server):
            continue
        real[name.removesuffix("_bucket")] = {label for labels, _ in found for label in labels} - {"le"}
    assert documented == real


def test_counts_are_right(server: Server) -> None:
    with server.client() as http:
        before = {name: value_of(server, name) for name in FAMILIES}
        usage = http.post(CHAT, json=chat_body("[long]", max_tokens=7, n=2)).json()["usage"]
        server.wait_metric("deepseek_admitted_answers", 0)
    after = {name: value_of(server, name) - before[name] for name in FAMILIES}
    assert after == {
        "deepseek_prompt_tokens_total": usage["prompt_tokens"],
        "deepseek_cached_prompt_tokens_total": usage["prompt_cache_hit_tokens"],
        "deepseek_generation_tokens_total": 14,
        "deepseek_answers_total": 2,
        "deepseek_time_to_first_token_seconds_count": 2,
        "deepseek_request_queue_time_seconds_count": 2,
        "deepseek_inter_token_latency_seconds_count": 12,
        "deepseek_e2e_request_latency_seconds_count": 1,
    }
    assert value_of(server, "deepseek_answers_total", finish_reason="cancelled") == 4
    assert value_of(server, "deepseek_answers_total", finish_reason="error") == 1
    assert value_of(server, "deepseek_refused_requests_total", reason="answers") == 1
    assert value_of(server, "deepseek_http_errors_total", status="503", code="server_is_overloaded") == 1


FAMILIES = (
    "deepseek_prompt_tokens_total",
    "deepseek_cached_prompt_tokens_total",
    "deepseek_generation_tokens_total",
    "deepseek_answers_total",
    "deepseek_time_to_first_token_seconds_count",
    "deepseek_request_queue_time_seconds_count",
    "deepseek_inter_token_latency_seconds_count",
    "deepseek_e2e_request_latency_seconds_count",
)


def test_times_are_times(server: Server) -> None:
    for name in ("time_to_first_token", "request_queue_time", "inter_token_latency", "e2e_request_latency"):
        total = value_of(server, f"deepseek_{name}_seconds_sum", model=MODEL)
        assert 0 <= total < 60
    assert value_of(server, "deepseek_event_loop_lag_seconds_count") > 0
    assert value_of(server, "deepseek_engine_process_resident_memory_bytes") > 1 << 20


def test_a_flood_of_unknown_names_makes_no_labels(server: Server) -> None:
    with server.client() as http:
        http.get("/nope")
        http.post(CHAT, json=chat_body() | {"model": "nope"})
        http.request("BREW", CHAT)
        http.get("/v1/models/nope")
        before = {name: len(found) for name, found in samples_of(server).items()}
        for i in range(100):
            http.get(f"/nope/{i}?q={i}", headers={"x-request-id": f"r{i}"})
            http.post(CHAT, json=chat_body(user_id=f"user-{i}") | {"model": f"nope-{i}"})
            http.request(f"BREW{i}", CHAT)
            http.get(f"/v1/models/nope-{i}")
        assert {name: len(found) for name, found in samples_of(server).items()} == before


def test_keys_are_no_labels() -> None:
    with running_server(api_keys=("sk-one", "sk-two")) as server, server.client() as http:
        names = set()
        for key in ("sk-one", "sk-two"):
            assert http.post(CHAT, json=chat_body(), headers={"authorization": f"Bearer {key}"}).status_code == 200
            names |= {frozenset(labels.items()) for labels, _ in samples_of(server)["deepseek_answers_total"]}
        assert len(names) == 4  # one per reason to end


@pytest.mark.parametrize(("value", "bucket"), [(0.0, "1.0"), (1.0, "1.0"), (1.001, "2.0"), (2.0, "2.0"), (9.0, "+Inf")])
def test_an_observation_is_in_the_bucket_whose_bound_it_does_not_exceed(value: float, bucket: str) -> None:
    distribution = Distribution((1.0, 2.0))
    distribution.observe(value)
    counts = dict(distribution.buckets())
    assert list(counts) == ["1.0", "2.0", "+Inf"] and distribution.total == value
    bounds = list(counts)
    assert [counts[bound] for bound in bounds] == [float(i >= bounds.index(bucket)) for i in range(3)]


def test_limit_on_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(256, soft)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
        assert raise_file_limit(10) > lower or hard == lower
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_server_has_the_hard_limit_on_open_files(server: Server) -> None:
    limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="utf-8")
    found = re.search(r"Max open files\s+(\d+)\s+(\d+)", limits)
    assert found and int(found[1]) == min(int(found[2]), 1 << 20)
