"""Our engine and others in turn, on the same model, in one run: `deepseek bench peers`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from deepseek.benchmark.engine import EngineProcess, Say, without_speculation
from deepseek.benchmark.peers import choose as choose_peers
from deepseek.benchmark.peers.base import Contender, PeerSettings
from deepseek.benchmark.scenarios import WITHOUT, Scenario, random_prompts
from deepseek.benchmark.scenarios import choose as choose_scenarios
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError
from deepseek.hub.cache import cache_dir
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import resolve
from deepseek.machine import describe_machine


class Ours:
    """Our engine as a contender: speculation off, but for the scenario about it, which has a process of its own."""

    note = ""
    warms_up = False

    def __init__(self, config: EngineConfig) -> None:
        self.name = f"ours {config.dtype}" + ("" if config.kv_dtype == "auto" else f", kv {config.kv_dtype}")
        self._config = config
        self.plain = EngineProcess(self.name, without_speculation(config))
        self._speculating: EngineProcess | None = None

    @property
    def version(self) -> str:
        return self.plain.version

    def flags(self, scenario: Scenario) -> str:
        if scenario.natural_end:
            return f"{self.plain.flags(scenario)}; then speculation={self._config.speculation}"
        return self.plain.flags(scenario)

    def unsupported(self, scenario: Scenario) -> str | None:
        return self.plain.unsupported(scenario)

    def run(self, scenario: Scenario, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        plain = self.plain.run(scenario, prompts)
        if not scenario.natural_end:
            return plain
        if self._speculating is None:
            self._speculating = EngineProcess(f"{self.name}, {self._config.speculation} speculation", self._config)
        return {**self._speculating.run(scenario, prompts), WITHOUT: plain[scenario.figures[0]]}

    def close(self) -> None:
        self.plain.close()
        if self._speculating is not None:
            self._speculating.close()


def compare(
    config: EngineConfig,
    *,
    dtypes: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    peers: Sequence[str] = (),
    repeats: int = 3,
    quick: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Measure ours and every chosen peer.

    A round is every scenario, with ours and then each peer one after the other; an unmeasured round comes first. All
    get the same token ids, new ones each round, or, with benchmark programs of their own, work of the same shape.

    Args:
        config: our settings; its dtype counts if ``dtypes`` is empty.
        dtypes: precisions of ours, each measured.
        scenarios: names; all for none.
        peers: names like ``vllm`` or ``vllm:bf16``; all for none.
        repeats: measured rounds.
        quick: an eighth of the work, to see that everything runs.

    Returns:
        ``machine``, ``settings``, ``contenders`` (version, flags, note), ``absent`` (peer -> why it was not run),
        ``runs`` (every round's figures), ``figures`` (medians) and ``ratios`` (ours -> peer -> figure -> median of
        the rounds' ratios; over 1, ours is faster). Ready for JSON.

    Raises:
        ConfigurationError, HubError: a choice that does not exist.
        BenchmarkError: ours failed. A peer that fails is reported in ``absent``.
    """
    work = choose_scenarios(scenarios, quick=quick)
    chosen = choose_peers(peers)
    if repeats < 1:
        raise ConfigurationError(f"repeats must be at least 1, not {repeats}.")
    config = msgspec.structs.replace(config, threads=config.threads or len(os.sched_getaffinity(0)))
    configs = [msgspec.structs.replace(config, dtype=dtype) for dtype in dict.fromkeys(dtypes or (config.dtype,))]
    machine = describe_machine()
    settings = _peer_settings(configs, work, machine)
    with ExitStack() as stack:
        ours = [_closing(stack, Ours(each)) for each in configs]
        absent: dict[str, str] = {}
        contenders: list[Contender] = [*ours, *_open(chosen, settings, absent, stack, say)]
        runs = _rounds(contenders, ours, work, repeats, absent, say)
        described = [_describe(contender, work) for contender in contenders]
    names = [each.name for each in ours]
    return {
        "machine": machine,
        "settings": {
            "model": config.model,
            "file": settings.model.name,
            "threads": settings.threads,
            "repeats": repeats,
            "scenarios": [scenario.name for scenario in work],
            "quick": quick,
        },
        "contenders": described,
        "absent": absent,
        "runs": runs,
        "figures": medians(runs),
        "ratios": {name: ratios(runs, name, others=names) for name in names},
    }


def _peer_settings(
    configs: Sequence[EngineConfig], work: Sequence[Scenario], machine: Mapping[str, object]
) -> PeerSettings:
    """What peers need to know to run as ours do, with ``configs`` that differ in their dtype alone."""
    config, features = configs[0], machine["features"]
    assert config.threads is not None and isinstance(features, list)
    return PeerSettings(
        model=resolve(config.model, offline=config.offline, progress=RichProgress()).path,
        threads=config.threads,
        max_context=max(scenario.tokens for scenario in work) + 16,
        max_requests=max(scenario.requests for scenario in work),
        our_dtypes=tuple(each.dtype for each in configs),
        features=frozenset(features),
        cache=cache_dir() / "peers",
        device=config.device,
    )


def _closing(stack: ExitStack, ours: Ours) -> Ours:
    stack.callback(ours.close)
    return ours


def _open(
    chosen: Iterable[tuple[Any, tuple[str, ...]]],
    settings: PeerSettings,
    absent: dict[str, str],
    stack: ExitStack,
    say: Say | None,
) -> list[Contender]:
    """Load every peer that is there; say why of the others."""
    opened: list[Contender] = []
    for peer, variants in chosen:
        reason = peer.available() if settings.device in peer.devices else f"not compared on {settings.device}"
        if reason is not None:
            absent[peer.name] = reason
            continue
        for variant in variants or peer.default_variants(settings):
            if say:
                say(f"loading {peer.name} {variant}")
            try:
                contender = peer.open(variant, settings)
            except BenchmarkError as error:
                absent[f"{peer.name}:{variant}"] = str(error)
                continue
            stack.callback(contender.close)
            opened.append(contender)
    return opened


def _rounds(
    contenders: Sequence[Contender],
    ours: Sequence[Ours],
    work: Sequence[Scenario],
    repeats: int,
    absent: dict[str, str],
    say: Say | None,
) -> list[dict[str, Any]]:
    vocab = min(engine.plain.info["vocab_size"] for engine in ours)
    edits = ours[0].plain.edit_prompts() if any(scenario.natural_end for scenario in work) else []
    runs: list[dict[str, Any]] = []
    for index in range(repeats + 1):
        for scenario in work:
            prompts = edits if scenario.natural_end else random_prompts(scenario, vocab, index)
            for contender in contenders:
                key = f"{contender.name}, {scenario.name}"
                if key in absent or (contender.warms_up and not index):
                    continue
                figures = _try(contender, scenario, prompts, key, absent, is_ours=contender in ours)
                if figures is None or not index:
                    continue
                entry = {"round": index, "scenario": scenario.name, "contender": contender.name, "figures": figures}
                runs.append(entry)
                if say:
                    say(f"round {index} of {repeats}, {key}: {figures[scenario.figures[0]]:.1f} tok/s")
    return runs


def _try(
    contender: Contender,
    scenario: Scenario,
    prompts: Sequence[Sequence[int]],
    key: str,
    absent: dict[str, str],
    *,
    is_ours: bool,
) -> dict[str, float] | None:
    """One measurement; None, with the reason in ``absent``, if a peer cannot."""
    reason = contender.unsupported(scenario)
    if reason is None:
        try:
            return dict(contender.run(scenario, prompts))
        except BenchmarkError as error:
            if is_ours:
                raise
            reason = f"failed: {error}"
    absent[key] = reason
    return None


def _describe(contender: Contender, work: Sequence[Scenario]) -> dict[str, Any]:
    flags = {scenario.name: contender.flags(scenario) for scenario in work if not contender.unsupported(scenario)}
    result = {"name": contender.name, "version": contender.version, "flags": flags, "note": contender.note}
    if isinstance(contender, Ours):
        wanted = ("dtype", "backends", "weights_bytes", "kv_cache_bytes")
        result["engine"] = {name: contender.plain.info[name] for name in wanted}
    return result


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Contender -> figure -> median over the rounds."""
    collected: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run["figures"].items():
            collected.setdefault(run["contender"], {}).setdefault(name, []).append(value)
    return {
        contender: {name: statistics.median(values) for name, values in figures.items()}
        for contender, figures in collected.items()
    }


def ratios(runs: Sequence[Mapping[str, Any]], ours: str, *, others: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Peer -> figure -> median over the rounds of our rate over the peer's of the same round.

    With speculation, ``edit_decode_tok_s/without`` is our rate with it over the peer's without.

    Args:
        runs: as :func:`compare` returns them.
        ours: the contender to divide.
        others: contenders that are not peers.
    """
    mine = {(run["round"], run["scenario"]): run["figures"] for run in runs if run["contender"] == ours}
    collected: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["contender"] in others:
            continue
        own = mine.get((run["round"], run["scenario"]), {})
        theirs = dict(run["figures"])
        pairs = {name: (own[name], value) for name, value in theirs.items() if name in own}
        if WITHOUT in theirs and "edit_decode_tok_s" in own:
            pairs["edit_decode_tok_s/without"] = (own["edit_decode_tok_s"], theirs[WITHOUT])
        for name, (numerator, denominator) in pairs.items():
            collected.setdefault(run["contender"], {}).setdefault(name, []).append(numerator / denominator)
    return {
        peer: {name: statistics.median(values) for name, values in figures.items()}
        for peer, figures in collected.items()
    }
