"""A model divided over processes: the engine's own computes a share, its followers the others, one message a step.

The leader starts the followers and tells each over its standard input what to compute; between processes travel sums,
logits and the tokens of the step before, through torch.distributed (NCCL on GPUs, gloo on CPUs). On GPUs each records
its part of a step, sums and all. A follower whose input ends is over, so none
outlives its leader; a leader that has lost a follower fails the step and says why.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from deepseek.adapters.adapter import Host, LowRankUpdate, Prefix
from deepseek.attention.stats import AttentionStats
from deepseek.config import EngineConfig
from deepseek.errors import AdapterError, BackendUnavailableError, EngineError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import PagedLayout
from deepseek.kernels.sampling import Choice
from deepseek.models.base import Batch, KVCache, Model, SpillSpace
from deepseek.models.device import on_device
from deepseek.models.shards import ShardedCheckpoint, Share, load_share
from deepseek.models.weights import LoadProgress

TIMEOUT = timedelta(minutes=5)
"""What processes wait for each other in a step, and after loading."""
_PATIENCE = 1.0
"""Seconds in which a process whose connection broke should be over."""
_LENGTH = struct.Struct("<I")


class Assignment(msgspec.Struct, frozen=True):
    """What a follower is told first."""

    config: EngineConfig
    path: str
    rank: int
    meeting: str
    dtype: str
    threads: int


class NewCache(msgspec.Struct, frozen=True, tag="cache"):
    num_pages: int
    page_size: int


class Forward(msgspec.Struct, frozen=True, tag="forward"):
    """A step's batch. Rows are int64, as bytes. ``previous``: length of the tensor of that name, which the leader hands
    out before the step; 0 without one."""

    token_ids: bytes
    positions: bytes
    write_slots: bytes
    logits_rows: bytes | None
    page_size: int
    query_starts: tuple[int, ...]
    context_lens: tuple[int, ...]
    pages: list[list[int]]
    previous: int

    @classmethod
    def of(cls, batch: Batch) -> Forward:
        layout = batch.layout
        return cls(
            token_ids=_to_bytes(batch.token_ids),
            positions=_to_bytes(batch.positions),
            write_slots=_to_bytes(layout.write_slots),
            logits_rows=None if batch.logits_rows is None else _to_bytes(batch.logits_rows),
            page_size=layout.page_size,
            query_starts=layout.query_starts,
            context_lens=layout.context_lens,
            pages=[list(pages) for pages in layout.pages],
            previous=0 if batch.previous is None else len(batch.previous),
        )

    def batch(self, device: torch.device, previous: Tensor | None) -> Batch:
        layout = PagedLayout(
            page_size=self.page_size,
            query_starts=self.query_starts,
            context_lens=self.context_lens,
            pages=tuple(self.pages),
            write_slots=_from_bytes(self.write_slots, device),
        )
        rows = None if self.logits_rows is None else _from_bytes(self.logits_rows, device)
        ids, positions = _from_bytes(self.token_ids, device), _from_bytes(self.positions, device)
        return Batch(ids, positions, layout, rows, previous=previous)


Command = NewCache | Forward


def _to_bytes(values: Tensor) -> bytes:
    return values.cpu().numpy().tobytes()


def _from_bytes(data: bytes, device: torch.device) -> Tensor:
    values = torch.frombuffer(bytearray(data), dtype=torch.int64) if data else torch.empty(0, dtype=torch.int64)
    return values.to(device)


def write_message(stream: BinaryIO, message: msgspec.Struct) -> None:
    """One message, its length before it."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_message(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end of the stream."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    return data if len(data) == length else None


def device_of(kind: str, rank: int) -> torch.device:
    """Where process ``rank`` computes. Raises BackendUnavailableError for a GPU that is not there."""
    if kind != "cuda":
        return torch.device(kind)
    if rank >= torch.cuda.device_count():
        raise BackendUnavailableError(
            f"tensor_parallel_size needs a GPU for each process, and torch sees {torch.cuda.device_count()}."
        )
    return torch.device("cuda", rank)


def share_tokens(previous: Tensor) -> None:
    """The leader's, in all processes."""
    dist.broadcast(previous, 0)


def join(meeting: str, share: Share, device: torch.device) -> None:
    """Meet the other processes at ``meeting``, the address of a file that all can write."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=share.rank, world_size=share.size, timeout=TIMEOUT)


class Followers:
    """The other processes of a divided model.

    Args:
        config: the engine's settings.
        path: where they find the checkpoint.
        dtype: of the computation.
        threads: CPU threads of each.

    Attributes:
        meeting: the address at which all processes meet (:func:`join`).
    """

    def __init__(self, config: EngineConfig, path: Path, dtype: torch.dtype, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deepseek-parallel-")
        self.meeting = f"file://{self._folder.name}/meeting"
        name = str(dtype).removeprefix("torch.")
        assignments = [
            Assignment(config, str(path), rank, self.meeting, name, threads)
            for rank in range(1, config.tensor_parallel_size)
        ]
        self._logs = [tempfile.TemporaryFile() for _ in assignments]  # noqa: SIM115 - closed by close()
        command = [sys.executable, "-m", "deepseek.engine.parallel_worker"]
        self._processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log) for log in self._logs]
        for process, assignment in zip(self._processes, assignments, strict=True):
            write_message(_input(process), assignment)

    def tell(self, command: Command) -> None:
        """Raises EngineError if a follower is over."""
        self.check()
        try:
            for process in self._processes:
                write_message(_input(process), command)
        except OSError as error:
            raise self._lost() from error

    def check(self, patience: float = 0.0) -> None:
        """Raises EngineError if a follower is over within ``patience`` seconds: one that dies closes its connections
        before it can be waited for."""
        deadline = time.monotonic() + patience
        while True:
            if any(process.poll() is not None for process in self._processes):
                raise self._lost()
            if time.monotonic() >= deadline:
                return
            time.sleep(0.01)

    def _lost(self) -> EngineError:
        for rank, (process, log) in enumerate(zip(self._processes, self._logs, strict=True), start=1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            if process.returncode is not None:
                log.seek(0)
                last = log.read()[-2000:].decode(errors="replace").strip().splitlines()[-5:]
                return EngineError(
                    f"process {rank} of this divided model ended with {process.returncode}: {' | '.join(last)}"
                )
        return EngineError("a process of this divided model does not listen any more.")

    def close(self) -> None:
        """End the followers. Safe to call twice."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                _input(process).close()
        for process, log in zip(self._processes, self._logs, strict=True):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
        self._folder.cleanup()


def _input(process: subprocess.Popen[bytes]) -> BinaryIO:
    assert process.stdin is not None
    return process.stdin  # type: ignore[return-value]


class ParallelDecoder:
    """The leader's share, which takes its followers along; satisfies :class:`deepseek.models.base.Model`.

    Attributes:
        weights_bytes: of all processes.
    """

    row_invariant = False
    pages_together = True
    sparse = False

    def __init__(self, own: Model, followers: Followers, weights_bytes: int) -> None:
        self.close = weakref.finalize(self, _part, followers)
        """Ends the followers, as the end of this process does."""
        self._own = own
        self._followers = followers
        self.architecture = own.architecture
        self.vocab_size = own.vocab_size
        self.hidden_size = own.hidden_size
        self.max_context = own.max_context
        self.cache_specs = own.cache_specs
        self.dtype = own.dtype
        self.device = own.device
        self.stream_device = own.stream_device
        self.weights_bytes = weights_bytes
        self.wide_rows = own.wide_rows

    def page_bytes(self, page_size: int) -> int:
        """Of this process: each has its own heads' part of a page."""
        return self._own.page_bytes(page_size)

    def index_page_bytes(self) -> int:
        return 0

    def spill_page_bytes(self, page_size: int) -> int:
        return 0

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> KVCache:
        self._followers.tell(NewCache(num_pages, page_size))
        cache: KVCache = self._own.new_cache(num_pages, page_size, spill)
        return cache

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """See :class:`deepseek.models.base.Model`. Raises EngineError if a follower is over."""
        with self._together(batch):
            return self._own.forward(batch, cache)

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """See :class:`deepseek.models.base.Model`. Raises EngineError if a follower is over."""
        with self._together(batch):
            return self._own.forward_with_hidden(batch, hidden_rows, cache)

    @contextlib.contextmanager
    def _together(self, batch: Batch) -> Iterator[None]:
        self._followers.tell(Forward.of(batch))
        try:
            if batch.previous is not None:
                share_tokens(batch.previous)
            yield
        except RuntimeError:  # torch's own: a follower that is over is why, or else it is the leader's
            self._followers.check(_PATIENCE)
            raise

    def attention_stats(self) -> AttentionStats:
        return AttentionStats()

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        return self._own.choose_tokens(logits, choices)

    @property
    def host(self) -> Host:
        """Raises AdapterError: adapters are not divided."""
        raise AdapterError(
            "a model that is divided over processes (tensor_parallel_size) cannot serve adapters. Merge it instead."
        )

    # Without a host none of these is called.

    def add_adapter(self, updates: Mapping[str, LowRankUpdate]) -> int:
        raise AssertionError

    def remove_adapter(self, number: int) -> None:
        raise AssertionError

    def adapter_bytes(self, number: int) -> int:
        raise AssertionError

    def write_prefix(self, cache: KVCache, slots: Sequence[int], prefix: Prefix, first: int) -> None:
        raise AssertionError


def _part(followers: Followers) -> None:
    followers.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def load_parallel(
    checkpoint: Checkpoint,
    config: EngineConfig,
    path: Path,
    *,
    ops: Ops,
    dtype: torch.dtype,
    threads: int,
    progress: LoadProgress | None = None,
) -> ParallelDecoder:
    """Start the followers, and load this process's share while they load theirs.

    Args:
        checkpoint: the model, as the engine's process reads it.
        config: the engine's settings, ``tensor_parallel_size`` processes among them.
        path: where followers find the checkpoint.
        ops, dtype: of the computation.
        threads: CPU threads of each process.
        progress: hears of this process's share.

    Raises as :func:`load_share`, and EngineError if a follower cannot load.
    """
    share = Share(0, config.tensor_parallel_size)
    device_of(config.device, share.size - 1)  # the last of them is there
    device = device_of(config.device, 0)
    ShardedCheckpoint(checkpoint, share)  # what cannot be divided is refused before anything is started
    followers = Followers(config, path, dtype, threads)
    try:
        join(followers.meeting, share, device)
        own = load_share(
            checkpoint, share, ops=ops, dtype=dtype, device=device, kv_dtype=config.kv_dtype, progress=progress
        )
        weights = torch.tensor([own.weights_bytes], device=device)
        dist.all_reduce(weights)
    except BaseException as error:
        try:
            if isinstance(error, RuntimeError):  # torch's own: a follower that did not come is why
                followers.check()
        finally:
            _part(followers)
        raise
    return ParallelDecoder(on_device(own, ops), followers, int(weights.item()))
