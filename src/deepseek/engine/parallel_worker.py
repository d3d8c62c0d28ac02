"""A follower: ``python -m deepseek.engine.parallel_worker`` computes its share of each step that it is told of."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from deepseek.engine.parallel import Assignment, Command, Forward, device_of, join, read_message, share_tokens
from deepseek.hub.open import open_checkpoint
from deepseek.kernels.registry import bind
from deepseek.models.base import KVCache, Model
from deepseek.models.device import on_device
from deepseek.models.shards import Share, load_share
from deepseek.models.stretch import stretched


def _commands(stream: BinaryIO) -> Iterator[Command]:
    """What the leader says, read ahead: the end of it ends the process even while it waits for the leader's sums."""
    queue: SimpleQueue[Command] = SimpleQueue()

    def listen() -> None:
        decode = msgspec.msgpack.Decoder(Command).decode
        while (data := read_message(stream)) is not None:
            queue.put(decode(data))
        os._exit(0)

    Thread(target=listen, daemon=True).start()
    while True:
        yield queue.get()


def _load(assignment: Assignment) -> Model:
    config = assignment.config
    torch.set_num_threads(assignment.threads)
    share = Share(assignment.rank, config.tensor_parallel_size)
    device = device_of(config.device, share.rank)
    join(assignment.meeting, share, device)
    checkpoint = open_checkpoint(Path(assignment.path))
    try:
        checkpoint = stretched(checkpoint, config.model, config.max_context, config.rope_scaling)
        ops, dtype = bind(config.device, config.backend), getattr(torch, assignment.dtype)
        model = load_share(checkpoint, share, ops=ops, dtype=dtype, device=device, kv_dtype=config.kv_dtype)
    finally:
        checkpoint.close()
    dist.all_reduce(torch.tensor([model.weights_bytes], device=device))
    return on_device(model, ops)


def main() -> None:
    """Follow the leader until its messages end."""
    first = read_message(sys.stdin.buffer)
    if first is None:
        return
    model = _load(msgspec.msgpack.decode(first, type=Assignment))
    cache: KVCache | None = None
    previous: Tensor | None = None
    with torch.inference_mode():
        for command in _commands(sys.stdin.buffer):
            if isinstance(command, Forward):
                assert cache is not None
                if command.previous:
                    if previous is None:
                        device = model.stream_device or model.device
                        previous = torch.zeros(command.previous, dtype=torch.int64, device=device)
                    share_tokens(previous)
                model.forward(command.batch(model.device, previous if command.previous else None), cache)
            else:
                cache = model.new_cache(command.num_pages, command.page_size)


if __name__ == "__main__":
    main()
