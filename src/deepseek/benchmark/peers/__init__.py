"""Other engines, run next to ours: one module each, all with the protocol of :mod:`deepseek.benchmark.peers.base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepseek.benchmark.peers.base import Peer
from deepseek.benchmark.peers.llama_cpp import LlamaCpp
from deepseek.benchmark.peers.python_peer import openvino, transformers, vllm
from deepseek.errors import ConfigurationError

PEERS: Mapping[str, Peer] = {peer.name: peer for peer in (LlamaCpp(), openvino(), vllm(), transformers())}


def choose(names: Sequence[str]) -> list[tuple[Peer, tuple[str, ...]]]:
    """Peers and the variants of each, for names like ``llama-cpp`` or ``llama-cpp:q8_0``; all peers for none.

    No variant means the peer's defaults. Raises ConfigurationError for an unknown peer or variant.
    """
    chosen: dict[str, list[str]] = {}
    for text in names or PEERS:
        name, _, variant = text.partition(":")
        if name not in PEERS:
            raise ConfigurationError(f"unknown peer {name!r}. There are: {', '.join(PEERS)}.")
        if variant and variant not in PEERS[name].variants:
            known = ", ".join(PEERS[name].variants)
            raise ConfigurationError(f"{name} has no variant {variant!r}. It has: {known}.")
        variants = chosen.setdefault(name, [])
        if variant and variant not in variants:
            variants.append(variant)
    return [(PEERS[name], tuple(variants)) for name, variants in chosen.items()]
