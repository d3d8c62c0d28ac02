"""One served model: its engine, its tokenizer, its names, and how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from deepseek import __version__
from deepseek.config import EngineConfig
from deepseek.engine.events import EngineInfo
from deepseek.errors import EngineOverloadedError, InvalidRequestError
from deepseek.runtime.client import RETRY_WHILE_STARTING, EngineClient

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer
    from deepseek_serve.parsing.detect import ChatFormat


class ServedModel:
    """A model that is loaded, or being loaded.

    Attributes:
        names: what requests may call it, the public one first.
        real_name: the model's own name.
        config: settings of its engine.
        client: its engine.
        tokenizer: None until it is loaded; the model does not run before.
        chat_format: how it writes calls and thoughts; None until the first chat asks.
        created: when it was asked for, seconds since 1970.
        fingerprint: changes with whatever may change its answers.
    """

    def __init__(self, names: Sequence[str], real_name: str, config: EngineConfig, client: EngineClient) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.real_name = real_name
        self.config = config
        self.client = client
        self.tokenizer: Tokenizer | None = None
        self.chat_format: ChatFormat | None = None
        self.created = int(time.time())
        identity = f"{__version__}/{real_name}/{config.dtype}/{config.backend}"
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The public name."""
        return self.names[0]

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served."""
        return self.client.responsive and self.tokenizer is not None

    @property
    def status(self) -> str:
        """``ready``, or why it is not: the engine's state, or ``unresponsive``."""
        if self.client.state != "ready" or self.ready:
            return self.client.state
        return "starting" if self.tokenizer is None else "unresponsive"

    async def start(self, load_tokenizer: Callable[[], Tokenizer], executor: Executor) -> EngineInfo:
        """Load tokenizer and engine side by side. Raises :class:`EngineStartError`, TokenizerError."""
        self.client.start_soon()
        tokenizer = asyncio.get_running_loop().run_in_executor(executor, load_tokenizer)
        try:
            info = await self.client.wait_ready()
        except BaseException:
            tokenizer.cancel()
            raise
        self.tokenizer = await tokenizer
        return info

    def running(self) -> tuple[EngineInfo, Tokenizer]:
        """The loaded engine's facts and the tokenizer. Raises an error that says 503 while there is none."""
        self.client.check_ready()
        if self.tokenizer is None or self.client.info is None:
            raise EngineOverloadedError(f"The model {self.name} is starting.", retry_after=RETRY_WHILE_STARTING)
        return self.client.info, self.tokenizer

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
