"""The adapters of an engine: loaded and unloaded between steps, while requests run."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from deepseek.adapters.adapter import Adapter
from deepseek.adapters.read import read_adapter
from deepseek.engine.events import AdapterInfo
from deepseek.errors import AdapterError, InvalidRequestError, UnknownAdapterError
from deepseek.models.base import Model


@dataclass(eq=False)
class ServedAdapter:
    """An adapter that requests can ask for, or that some still use.

    Attributes:
        name: what requests call it.
        adapter: its weights; of a LoRA, the model has them.
        number: that the model gave it; None for one that only stands before prompts.
        info: what is told of it.
        users: live requests.
        retired: no further request gets it.
    """

    name: str
    adapter: Adapter
    number: int | None
    info: AdapterInfo
    users: int = 0
    retired: bool = False


class Adapters:
    """All adapters of one model.

    Args:
        model: computes with them.
        limit: how many there may be.
        max_tokens: that one may put before a prompt.
        prefixes: caches can be given keys and values from outside.
    """

    def __init__(self, model: Model, *, limit: int, max_tokens: int, prefixes: bool = True) -> None:
        self._model = model
        self._limit = limit
        self._max_tokens = max_tokens
        self._prefixes = prefixes
        self._named: dict[str, ServedAdapter] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._named)

    @property
    def infos(self) -> list[AdapterInfo]:
        return [served.info for served in self._named.values()]

    def load(self, name: str, folder: str) -> AdapterInfo:
        """Read an adapter and serve it as ``name``. One of that name gives way, but for the requests that use it.

        Raises AdapterError with all that keeps it from being served, InvalidRequestError for one too many.
        """
        started = time.perf_counter()
        if name not in self._named and len(self._named) >= self._limit:
            raise InvalidRequestError(
                f"{len(self._named)} adapters are loaded, as many as there may be (max_adapters). Unload one first.",
                param="lora_name",
                code="too_many_adapters",
            )
        adapter = read_adapter(Path(folder).expanduser(), self._model.host)
        if adapter.length >= self._max_tokens:
            raise AdapterError(
                f"the adapter in {folder} puts {adapter.length} tokens before a prompt, and the context holds "
                f"{self._max_tokens}."
            )
        if adapter.prefix is not None and not self._prefixes:
            raise AdapterError(
                "adapters that give keys and values (prefix tuning) cannot be served with kv_spill_bytes."
            )
        number = self._model.add_adapter(adapter.updates) if adapter.updates else None
        size = self._model.adapter_bytes(number) if number is not None else _bytes_of(adapter)
        if name in self._named:
            self.unload(name)
        info = AdapterInfo(
            name=name,
            kind=adapter.kind,
            digest=adapter.digest,
            base_model=adapter.base_model,
            rank=adapter.rank,
            tokens=adapter.length,
            nbytes=size,
            load_seconds=time.perf_counter() - started,
        )
        if number is not None:  # the model has its own copy
            adapter = Adapter(adapter.kind, adapter.digest, adapter.base_model)
        self._named[name] = ServedAdapter(name, adapter, number, info)
        self.bytes += size
        return info

    def unload(self, name: str) -> None:
        """Serve it no more; its memory is free when no request uses it. Raises UnknownAdapterError."""
        served = self._named.pop(name, None)
        if served is None:
            raise UnknownAdapterError(name, self._named)
        served.retired = True
        self._free(served)

    def acquire(self, name: str) -> ServedAdapter:
        """The adapter for one more request. Raises UnknownAdapterError."""
        served = self._named.get(name)
        if served is None:
            raise UnknownAdapterError(name, self._named)
        served.users += 1
        return served

    def release(self, served: ServedAdapter) -> None:
        """One request less."""
        served.users -= 1
        self._free(served)

    def write_prefix(self, cache: object, served: ServedAdapter, pages: Seq[int], page_size: int, first: int) -> int:
        """Store the keys and values that stand before the prompt of a request with these pages, from token ``first``
        on. Returns how many tokens are there then."""
        prefix, length = served.adapter.prefix, served.adapter.length
        if prefix is None or first >= length:
            return first
        slots = [pages[p // page_size] * page_size + p % page_size for p in range(first, length)]
        self._model.write_prefix(cache, slots, prefix, first)
        return length

    def _free(self, served: ServedAdapter) -> None:
        if not served.retired or served.users:
            return
        self.bytes -= served.info.nbytes
        if served.number is not None:
            self._model.remove_adapter(served.number)


def _bytes_of(adapter: Adapter) -> int:
    tensors = [adapter.vectors] if adapter.vectors is not None else []
    if adapter.prefix is not None:
        tensors += [adapter.prefix.keys, adapter.prefix.values]
    return sum(tensor.nbytes for tensor in tensors)
