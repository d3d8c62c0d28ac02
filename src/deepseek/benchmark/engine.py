"""Our engine alone: one configuration, or the V2.1 profile against the baseline, in turn in one run."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from deepseek.attention.policy import DEFAULT_ERROR
from deepseek.benchmark.process import WorkerProcess
from deepseek.benchmark.scenarios import EDIT_PROMPTS, SCENARIOS, Scenario, Timing, figures, random_prompts
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError
from deepseek.machine import describe_machine
from deepseek.threads import wait_politely

KV_CACHE_BYTES = 2**30
"""What a measured engine gets for keys and values if nothing else is said: several share one machine."""
ENGINE_SCENARIOS = ("prefill", "decode", "batch", "context")
LOAD_TIMEOUT = 1800.0
RUN_TIMEOUT = 1800.0

Say = Callable[[str], None]


class EngineProcess:
    """One configuration of our engine in a process of its own.

    Attributes:
        name: what tables call it.
        config: its settings.
        info: what it said after loading: the fields of :class:`deepseek.engine.events.EngineInfo`.

    Raises:
        BenchmarkError: it cannot be loaded; carries the reason.
    """

    def __init__(self, name: str, config: EngineConfig) -> None:
        self.name = name
        if config.kv_cache_bytes is None:
            config = msgspec.structs.replace(config, kv_cache_bytes=KV_CACHE_BYTES)
        self.config = config
        self._process = start_worker(name)
        try:
            self.info = self._process.ask({"op": "load", "config": msgspec.to_builtins(config)}, LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> str:
        return str(describe_machine()["deepseek"])

    def flags(self, scenario: Scenario) -> str:
        """The settings that are not the defaults."""
        fields = msgspec.to_builtins(self.config)
        changed = [f"{key}={fields[key]}" for key in fields if key != "model" and fields[key] != _DEFAULTS[key]]
        return " ".join(changed)

    def unsupported(self, scenario: Scenario) -> str | None:
        """Why it cannot do this, or None."""
        if scenario.tokens > self.info["max_context"]:
            return f"the context holds {self.info['max_context']} tokens"
        return None

    def edit_prompts(self) -> list[list[int]]:
        """The code editing prompts as token ids of this model's chat."""
        prompts: list[list[int]] = self._process.ask({"op": "chat", "texts": EDIT_PROMPTS}, RUN_TIMEOUT)["prompts"]
        return prompts

    def time(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Timing:
        """Send ``prompts`` together, or one after the other where there are more than the scenario has at once."""
        return time_in_worker(self._process, scenario, prompts)

    def run(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """The scenario's figures."""
        return figures(scenario, self.time(scenario, prompts))

    def memory(self) -> int:
        """Peak bytes of its process so far."""
        return int(self._process.ask({"op": "memory"}, 60)["peak_memory_bytes"])

    def close(self) -> None:
        self._process.close()


_DEFAULTS: Mapping[str, Any] = msgspec.to_builtins(EngineConfig())


def start_worker(name: str) -> WorkerProcess:
    """A process of our engine that has not loaded anything."""
    wait_politely()  # the worker inherits the environment
    return WorkerProcess(name, [sys.executable, "-m", "deepseek.benchmark.worker"])


def time_in_worker(process: WorkerProcess, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Timing:
    """Ask a worker, ours or a peer's, to compute ``prompts``, at most ``scenario.requests`` of them at once."""
    timing = Timing(0.0, 0.0, 0, 0)
    for start in range(0, len(prompts), scenario.requests):
        group = [list(prompt) for prompt in prompts[start : start + scenario.requests]]
        question = {"op": "run", "prompts": group, "output": scenario.output, "ignore_eos": not scenario.natural_end}
        timing += Timing.parse(process.ask(question, RUN_TIMEOUT))
    return timing


def measured_bandwidth(threads: int | None, device: str = "cpu") -> float:
    """Bytes per second that ``threads`` threads read, or that a GPU copies, from a process of its own."""
    process = start_worker("the bandwidth test")
    try:
        return float(process.ask({"op": "bandwidth", "threads": threads, "device": device}, 120)["bandwidth"])
    finally:
        process.close()


def measure_engine(
    config: EngineConfig, *, repeats: int = 3, quick: bool = False, say: Say | None = None
) -> dict[str, Any]:
    """Load a model in a process of its own and measure it.

    Prompts are random tokens, different for each round so that no prefix is reused; answers are greedy and go on
    after end tokens, without speculation. One unmeasured round comes first.

    Returns:
        Medians: ``prefill_tok_s``, ``decode_tok_s``, ``batch32_output_tok_s``, ``batch32_decode_tok_s``,
        ``context_decode_tok_s`` (absent if the model's context is too small), ``ttft_ms`` (a prompt of 128 tokens,
        alone); ``peak_memory_bytes`` and ``peak_over_budget`` (against weights + KV cache);
        ``bytes_per_token``, ``read_bytes_s``, ``bandwidth_bytes_s`` and ``bandwidth_share`` (see :func:`traffic`);
        ``machine``, ``settings``, ``runs``. Ready for JSON.

    Raises:
        BenchmarkError: the engine could not be loaded or measured.
    """
    return _measure({"engine": config}, repeats=repeats, quick=quick, say=say)["engine"]


def measure_profiles(
    profiles: Mapping[str, EngineConfig],
    *,
    repeats: int = 3,
    price_per_hour: float = 0.10,
    quick: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Measure configurations in turn, and compare the last with the first, the baseline.

    Args:
        profiles: name -> settings, the baseline first.
        price_per_hour: of the machine, in any currency.

    Returns:
        ``profiles`` (as :func:`measure_engine` gives them, with ``cost_per_million`` output tokens from
        the 32 requests' rate), ``price_per_hour``, and for more than one profile ``ratios``: medians of the rounds'
        ratios, the last profile over the first, with ``size`` of the weights and ``cost_per_million``.
    """
    if price_per_hour <= 0:
        raise ConfigurationError(f"the price per hour must be positive, not {price_per_hour}.")
    measured = _measure(profiles, repeats=repeats, quick=quick, say=say)
    main = SCENARIOS["batch"].figures[0]
    for result in measured.values():
        result["cost_per_million"] = price_per_hour / (result[main] * 3600) * 1e6
    report: dict[str, Any] = {"price_per_hour": price_per_hour, "profiles": measured}
    if len(measured) > 1:
        first, last = measured[next(iter(measured))], measured[list(measured)[-1]]
        pairs = list(zip(last["runs"], first["runs"], strict=True))
        ratios = {
            name: statistics.median(ours[name] / base[name] for ours, base in pairs)
            for name in first["runs"][0]
            if name in last["runs"][0]
        }
        ratios["size"] = last["settings"]["weights_bytes"] / first["settings"]["weights_bytes"]
        ratios["cost_per_million"] = statistics.median(base[main] / ours[main] for ours, base in pairs)
        report["ratios"] = ratios
    return report


def profile_configs(
    model: str,
    which: str,
    *,
    dtype: str,
    kv_dtype: str,
    attention: str = "auto",
    attention_error: float = DEFAULT_ERROR,
    **options: Any,
) -> dict[str, EngineConfig]:
    """Settings of the ``baseline``, of ``v2.1``, or of ``both`` (the baseline first).

    The baseline is plain inference: FP16 weights and cache, dense attention, no prefix cache, no speculation. V2.1 is
    the engine as it comes, in ``dtype``; what is measured here leaves its speculation and prefix cache out, as random
    prompts would give a false picture of both.

    Raises:
        ConfigurationError: another name.
    """
    plain: dict[str, Any] = {"dtype": "fp16", "kv_dtype": "fp16", "attention": "dense"}
    plain |= {"prefix_cache": False, "speculation": "off"}
    ours: dict[str, Any] = {"dtype": dtype, "kv_dtype": kv_dtype}
    ours |= {"attention": attention, "attention_error": attention_error}
    configs = {
        "baseline": EngineConfig(model=model, **options, **plain),
        "v2.1": EngineConfig(model=model, **options, **ours),
    }
    if which == "both":
        return configs
    if which not in configs:
        raise ConfigurationError(f"unknown profile {which!r}. There are: baseline, v2.1, both.")
    return {which: configs[which]}


def without_speculation(config: EngineConfig) -> EngineConfig:
    """The same settings with one token per step and sequence."""
    return msgspec.structs.replace(config, speculation="off", draft_model=None)


def traffic(info: Mapping[str, Any], context: float) -> float:
    """Bytes that decoding one token of one stream reads: all weights (an untied embedding counts too, though only one
    row of it is read) and the keys and values of ``context`` tokens."""
    return float(info["weights_bytes"] + info["kv_cache_bytes"] / info["kv_cache_tokens"] * context)


def _measure(
    configs: Mapping[str, EngineConfig], *, repeats: int, quick: bool, say: Say | None
) -> dict[str, dict[str, Any]]:
    # Answers to random tokens repeat themselves, which speculation would be flattered by.
    configs = {name: without_speculation(config) for name, config in configs.items()}
    engines: list[EngineProcess] = []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    try:
        for name, config in configs.items():
            engines.append(EngineProcess(name, config))
        for index in range(repeats + 1):
            for engine in engines:
                round_figures = _round(engine, index, quick)
                if index:
                    runs[engine.name].append(round_figures)
                    if say:
                        shown = ", ".join(f"{key} {value:.1f}" for key, value in round_figures.items())
                        say(f"round {index} of {repeats}, {engine.name}: {shown}")
        peaks = {engine.name: engine.memory() for engine in engines}
    finally:
        for engine in engines:
            engine.close()
    first = next(iter(configs.values()))
    bandwidth = measured_bandwidth(first.threads, first.device)
    machine = describe_machine()
    return {
        engine.name: {
            **_summary(engine, runs[engine.name], peaks[engine.name], bandwidth, quick),
            "machine": machine,
            "settings": _settings(engine, repeats, quick),
            "runs": runs[engine.name],
        }
        for engine in engines
    }


def _round(engine: EngineProcess, index: int, quick: bool) -> dict[str, float]:
    """All scenarios once; first tokens are taken from the single stream."""
    result: dict[str, float] = {}
    for name in ENGINE_SCENARIOS:
        scenario = SCENARIOS[name].quick() if quick else SCENARIOS[name]
        if engine.unsupported(scenario):
            continue
        timing = engine.time(scenario, random_prompts(scenario, engine.info["vocab_size"], index))
        result.update(figures(scenario, timing))
        if name == "decode":
            result["ttft_ms"] = timing.first * 1000
    if not result:
        raise BenchmarkError(
            f"{engine.name}: a context of {engine.info['max_context']} tokens is too small to measure."
        )
    return result


def _summary(
    engine: EngineProcess, runs: Sequence[Mapping[str, float]], peak: int, bandwidth: float, quick: bool
) -> dict[str, Any]:
    medians = {name: statistics.median(figures[name] for figures in runs) for name in runs[0]}
    scenario = SCENARIOS["decode"].quick() if quick else SCENARIOS["decode"]
    moved = traffic(engine.info, scenario.prompt + scenario.output / 2)
    read = moved * medians["decode_tok_s"]
    budget = engine.info["weights_bytes"] + engine.info["kv_cache_bytes"]
    return {
        **medians,
        "peak_memory_bytes": peak,
        "peak_over_budget": peak / budget,
        "bytes_per_token": moved,
        "read_bytes_s": read,
        "bandwidth_bytes_s": bandwidth,
        "bandwidth_share": read / bandwidth,
    }


def _settings(engine: EngineProcess, repeats: int, quick: bool) -> dict[str, Any]:
    wanted = ("model", "dtype", "backends", "weights_bytes", "kv_cache_bytes", "load_seconds")
    return {
        **{name: engine.info[name] for name in wanted},
        "config": msgspec.to_builtins(engine.config),
        "max_batch_tokens": engine.config.max_batch_tokens,
        "max_running": engine.config.max_running,
        "threads": engine.config.threads,
        "repeats": repeats,
        "quick": quick,
    }
