"""What all requests share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

from deepseek.engine.constraint_checker import ConstraintChecker
from deepseek_serve.admission import Admission
from deepseek_serve.auth import Keys
from deepseek_serve.config import ServeConfig
from deepseek_serve.errors import ApiError
from deepseek_serve.ledger import UsageLedger
from deepseek_serve.limits import Limits
from deepseek_serve.metrics import Metrics
from deepseek_serve.models import ServedModel
from deepseek_serve.observability.tracing import start_tracing
from deepseek_serve.responses.live import LiveResponses
from deepseek_serve.store.store import Store, default_data_dir

if TYPE_CHECKING:
    from deepseek_serve.loading import ModelLoader

TOKENIZER_THREADS = 2


class ServerState:
    """One server: its models and its books.

    Attributes:
        config: settings.
        models: the served models. Requests that name none get the first one.
        home: the real name of the model that the server was started with, by which batches find their server.
        admission: how much is in work.
        store: files, batches, stored responses and usage.
        responses: those that this process is at work on.
        batches_changed: set when there may be work for the runner of batches.
        limits: what each key may do.
        checker: says what is wrong in a form that an answer is to have.
        checks: the thread that waits for it, apart from tokenization, since a hostile form may take a second.
        loader: loads and unloads models; set by who runs the server.
        executor: threads for templates and tokenization, so that long prompts do not stop the event loop.
    """

    loader: ModelLoader

    def __init__(self, config: ServeConfig, *models: ServedModel) -> None:
        self.config = config
        self.models = list(models)
        self.home = models[0].real_name
        self.keys = Keys(config.api_keys)
        several = len(config.api_keys) > 1
        self.admission = Admission(config.capacity, config.prompt_capacity, several=several)
        data_dir = Path(config.data_dir).expanduser().absolute() if config.data_dir else default_data_dir()
        self.store = Store(data_dir, config.database_url, quota=config.max_stored_bytes)
        self.responses = LiveResponses(self.store)
        self.batches_changed = asyncio.Event()
        self.limits = Limits(config.limits_store, UsageLedger(self.store.usage))
        self.metrics = Metrics(self.models, self.admission, self.limits)
        self.metrics.watch_store(self.store)
        self.tracing = start_tracing(config.otlp_endpoint)
        self.executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self.checker = ConstraintChecker()
        self.checks = ThreadPoolExecutor(1, thread_name_prefix="constraints")

    def model(self, name: str | None) -> ServedModel:
        """The model that a request asks for, or the one with the adapter of this name; None asks for the first. Raises
        :class:`ApiError` 404."""
        for model in self.models:
            if name is None or name in model.names:
                return model
            if name in model.adapters:
                return model.adapters[name]
        names = [known for model in self.models for known in (*model.names, *model.adapters)]
        known = " and ".join(map(repr, names)) or "none"
        raise ApiError(
            404,
            f"The model {(name or '')[:100]!r} does not exist; this server knows {known}.",
            param="model",
            code="model_not_found",
        )

    @property
    def ready(self) -> bool:
        return bool(self.models) and self.models[0].ready and not self.admission.draining


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state
