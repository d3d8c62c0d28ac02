"""What all requests share."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.requests import Request

from deepseek import __version__
from deepseek.engine.events import EngineInfo
from deepseek.errors import EngineOverloadedError
from deepseek.runtime.client import RETRY_WHILE_STARTING, EngineClient
from deepseek_serve.auth import Keys
from deepseek_serve.config import ServeConfig
from deepseek_serve.errors import ApiError
from deepseek_serve.limits import Admission
from deepseek_serve.metrics import Metrics

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer

TOKENIZER_THREADS = 2


class ServerState:
    """One server: its engine, its tokenizer and its books.

    Attributes:
        config: settings.
        client: the engine.
        tokenizer: None until it is loaded; the server is not ready before.
        real_name: the model's own name, a second name to ask for it.
        admission: how much is in work.
        executor: threads for templates and tokenization, so that long prompts do not stop the event loop.
    """

    def __init__(
        self, config: ServeConfig, client: EngineClient, *, real_name: str, tokenizer: Tokenizer | None = None
    ) -> None:
        self.config = config
        self.client = client
        self.real_name = real_name
        self.tokenizer = tokenizer
        self.keys = Keys(config.api_keys)
        self.admission = Admission(config.capacity)
        self.metrics = Metrics(client, self.admission)
        self.executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self.created = int(time.time())
        identity = f"{__version__}/{real_name}/{config.engine.dtype}/{config.engine.backend}"
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names a request may ask for, the public one first."""
        return tuple(dict.fromkeys((self.config.served_model_name, self.real_name)))

    def check_model(self, name: str) -> None:
        """Raises :class:`ApiError` 404 for a model that is not here."""
        if name not in self.model_names:
            known = " and ".join(repr(n) for n in self.model_names)
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist; this server knows {known}.",
                param="model",
                code="model_not_found",
            )

    def running(self) -> tuple[EngineInfo, Tokenizer]:
        """The loaded engine's facts and the tokenizer. Raises an error that says 503 while there is none."""
        self.client.check_ready()
        if self.tokenizer is None or self.client.info is None:
            raise EngineOverloadedError("The server is starting.", retry_after=RETRY_WHILE_STARTING)
        return self.client.info, self.tokenizer

    @property
    def ready(self) -> bool:
        return self.client.responsive and self.tokenizer is not None and not self.admission.draining


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state
