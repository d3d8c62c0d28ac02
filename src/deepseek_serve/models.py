"""One served model: its engines, its tokenizer, its names, and how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Literal

import msgspec

from deepseek import __version__
from deepseek.config import EngineConfig
from deepseek.engine.events import EmbedEvent, EmbedRequest, EngineInfo, GenerateRequest, TokenEvent
from deepseek.errors import EngineDeadError, EngineOverloadedError, InvalidRequestError
from deepseek.runtime.client import RETRY_WHILE_STARTING, EngineClient
from deepseek_serve.routing import Router

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer
    from deepseek_serve.adapted import AdaptedModel
    from deepseek_serve.parsing.detect import ChatFormat


class Progress(msgspec.Struct, frozen=True):
    """How far a model is that is being loaded.

    Attributes:
        phase: its files are downloaded, or its weights are loaded.
        done: bytes that are here, or tensors.
        total: of how many; 0 if that is not known.
        percent: of this phase.
    """

    phase: Literal["downloading", "loading"]
    done: int = 0
    total: int = 0
    percent: int = 0

    @classmethod
    def of(cls, phase: Literal["downloading", "loading"], done: int, total: int) -> Progress:
        return cls(phase, done, total, 100 * min(done, total) // total if total else 0)


class ServedModel:
    """A model that is loaded, or being loaded, by one engine or several replicas.

    Attributes:
        names: what requests may call it, the public one first.
        real_name: the model's own name.
        config: its settings, before they are divided among replicas.
        replicas: its engines; none before its files are there.
        router: chooses among them.
        tokenizer: None until it is loaded; the model does not run before.
        chat_format: how it writes calls and thoughts; None until the first chat asks.
        created: when it was asked for, seconds since 1970.
        fingerprint: changes with whatever may change its answers.
        download: how far its files are, while they come.
        failure: why it could not be loaded, or cannot go on.
        unloading: it takes no more requests.
        adapters: as it answers with its adapters, by their names.
    """

    def __init__(self, names: Sequence[str], real_name: str, config: EngineConfig, *replicas: EngineClient) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.real_name = real_name
        self.tokenizer: Tokenizer | None = None
        self.chat_format: ChatFormat | None = None
        self.created = int(time.time())
        self.download: Progress | None = None
        self.unloading = False
        self.adapters: dict[str, AdaptedModel] = {}
        self._failed: str | None = None
        self.attach(config, replicas)

    def attach(self, config: EngineConfig, replicas: Sequence[EngineClient]) -> None:
        """Give it its engines, which have not been started."""
        self.config = config
        self.replicas = tuple(replicas)
        self.router = Router(self.replicas)
        identity = f"{__version__}/{self.real_name}/{config.dtype}/{config.backend}"
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The public name."""
        return self.names[0]

    @property
    def info(self) -> EngineInfo | None:
        """What its engines are, once one of them has been ready."""
        return next((replica.info for replica in self.replicas if replica.info is not None), None)

    @property
    def pending(self) -> int:
        """Requests in its engines."""
        return sum(replica.pending for replica in self.replicas)

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served."""
        return self.tokenizer is not None and not self.unloading and any(r.responsive for r in self.replicas)

    @property
    def status(self) -> str:
        """``ready``, or why it is not: ``unloading``, ``unresponsive``, or the state of the engine that is furthest."""
        if self.unloading:
            return "unloading"
        if self._failed is not None:
            return "failed"
        if self.ready:
            return "ready"
        states = {replica.state for replica in self.replicas}
        if "ready" in states:
            return "starting" if self.tokenizer is None else "unresponsive"
        return next((state for state in ("restarting", "starting", "failed", "stopped") if state in states), "starting")

    @property
    def failure(self) -> str | None:
        return self._failed or next((r.failure for r in self.replicas if r.failure is not None), None)

    @property
    def progress(self) -> Progress | None:
        """How far it is while it starts; of several replicas, the one that is least far."""
        if self.status != "starting":
            return None
        steps = [replica.loading or (0, 0) for replica in self.replicas if replica.state == "starting"]
        if not steps:  # the files come, or the tokenizer is all that is missing
            return Progress("loading", percent=100) if self.replicas else self.download or Progress("downloading")
        return min((Progress.of("loading", *step) for step in steps), key=lambda progress: progress.percent)

    def start_soon(self) -> None:
        """Start the engine processes in the background."""
        for replica in self.replicas:
            replica.start_soon()

    async def start(self, load_tokenizer: Callable[[], Tokenizer], executor: Executor) -> EngineInfo:
        """Load tokenizer and engines side by side. Raises :class:`EngineStartError`, TokenizerError."""
        self.start_soon()
        tokenizer = asyncio.get_running_loop().run_in_executor(executor, load_tokenizer)
        try:
            infos = await asyncio.gather(*(replica.wait_ready() for replica in self.replicas))
        except BaseException:
            tokenizer.cancel()
            raise
        self.tokenizer = await tokenizer
        return infos[0]

    def running(self) -> tuple[EngineInfo, Tokenizer]:
        """The loaded engines' facts and the tokenizer. Raises an error that says 503 while there are none."""
        if self.unloading:
            raise EngineOverloadedError(f"The model {self.name} is being unloaded.", retry_after=RETRY_WHILE_STARTING)
        if self._failed is not None:
            raise EngineDeadError(f"The model {self.name} could not be loaded: {self._failed}")
        self.router.check_ready()
        if self.tokenizer is None or self.info is None:
            raise EngineOverloadedError(f"The model {self.name} is starting.", retry_after=RETRY_WHILE_STARTING)
        return self.info, self.tokenizer

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """As :meth:`EngineClient.generate`, by the replica that suits the prompt."""
        return self.router.choose(request.prompt, request.cache_salt).generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedEvent:
        """As :meth:`EngineClient.embed`, likewise."""
        return await self.router.choose(request.tokens, request.cache_salt).embed(request)

    def fail(self, reason: str) -> None:
        """It could not be loaded."""
        self._failed = reason

    def abort_all(self, reason: str) -> None:
        """End every request with an error."""
        for replica in self.replicas:
            replica.abort_all(reason, code="shutting_down")

    async def stop(self) -> None:
        """End the engine processes."""
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    def generating(self) -> tuple[EngineInfo, Tokenizer]:
        """As :meth:`running`, of a model that answers. Raises :class:`InvalidRequestError` for an encoder."""
        info, tokenizer = self.running()
        if not info.generates:
            raise InvalidRequestError(
                f"The model {self.name!r} makes embeddings and does not generate text: send its requests to "
                "/v1/embeddings.",
                param="model",
                code="model_not_supported",
            )
        return info, tokenizer
