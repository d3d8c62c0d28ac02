"""One request on its way in: everything that can refuse it, in order, and before the first byte.

Requests per minute and quota of the key (:func:`deepseek_serve.auth.require_key`), its answers at a time, the node's
answers; then the prompts are tokenized; then the key's tokens per minute and the node's waiting prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType
from starlette.requests import Request

from deepseek_serve.admission import WaitingPrompt
from deepseek_serve.auth import ApiKey
from deepseek_serve.limits import Reservation
from deepseek_serve.observability.record import RequestRecord

if TYPE_CHECKING:
    from deepseek_serve.state import ServerState

BATCH_PRIORITY = -10
FLEX_PRIORITY = -5  # of `service_tier: flex`: below everybody's, above batches
ASSUMED_ANSWER = 512  # tokens reserved for an answer without a limit of its own


class Entry:
    """On whose account a request goes, and what it holds.

    Args:
        resources: what is held is given back when they are closed.
        user_id: one of the key's users; they share its part of the engine equally, and no cached prefixes.
        service_tier: the tier asked for.

    Attributes:
        record: what log, metrics and traces will say of the request.
        account: the key's name, whose usage it is.
        tenant: key and user, as the engine's scheduler knows them.
        cache_salt: who shares cached prefixes: the same, of the same key and user only.
        priority: of its sequences in the engine.
        weight: of its key.
        service_tier: the tier it is served in, for the answer; UNSET if none was asked for.
    """

    record: RequestRecord
    service_tier: str | UnsetType

    def __init__(
        self,
        state: ServerState,
        request: Request,
        resources: ExitStack,
        *,
        user_id: str | None = None,
        service_tier: str | None = None,
    ) -> None:
        self._request = request
        self.record = request.state.record
        self._hold(state, request.state.key, resources, user_id)
        self.priority, tier = _tier(self._key, service_tier)
        if service_tier is not None:
            self.service_tier = tier

    def _hold(self, state: ServerState, key: ApiKey, resources: ExitStack, user_id: str | None) -> None:
        self._state = state
        self._resources = resources
        self._key = key
        self._waiting: list[WaitingPrompt] = []
        self._reservation: Reservation | None = None
        self._used: int | None = None
        self.account = key.tenant
        self.tenant = f"{key.tenant}/{user_id}" if user_id else key.tenant
        self.cache_salt = f"{key.tenant}:{user_id}" if user_id else key.tenant
        self.weight = key.weight
        self.priority = 0
        self.service_tier = UNSET

    def take(self, answers: int) -> None:
        """Take room for so many answers. Raises :class:`ApiError` 429 and as :meth:`Admission.enter`."""
        self._resources.enter_context(self._state.limits.answers(self._key, answers))
        self._resources.enter_context(self._state.admission.enter(answers, self._key))

    async def take_tokens(
        self, prompts: Sequence[Sequence[int]], *, answers: int, max_tokens: int | None, max_context: int
    ) -> None:
        """Take tokens: those of the prompts, and what ``answers`` of each may grow to.

        A prompt counts once, however many answers continue it. Raises :class:`ApiError` 429,
        :class:`EngineOverloadedError`.
        """
        lengths = [len(prompt) for prompt in prompts]
        wanted = sum(lengths) + sum(answers * min(max_tokens or ASSUMED_ANSWER, max_context - n) for n in lengths)
        limit = self._key.tokens_per_minute
        if max_tokens is None and limit is not None and sum(lengths) + answers * len(lengths) <= limit:
            wanted = min(wanted, limit)  # it is only assumed that answers are so long
        self._waiting = self._state.admission.wait(lengths, self._key)
        for prompt in self._waiting:
            self._resources.callback(prompt.close)
        self._reservation = await self._state.limits.reserve(self._request, self._key, wanted)
        self._resources.callback(self._settle)

    def begun(self, prompt: int) -> None:
        """The first token of an answer to the prompt of this index has come."""
        if prompt < len(self._waiting):
            self._waiting[prompt].close()

    def ended(self, tokens: int) -> None:
        """The request has ended and has used so many tokens."""
        self._used = tokens

    def _settle(self) -> None:
        self._state.limits.settle(self._key, self._reservation, self._used or 0)


class BatchEntry(Entry):
    """A line of a batch: on its key's account and quota, behind all live requests, and in nobody's way: what bounds
    lines in work is the batches' own."""

    def __init__(self, state: ServerState, tenant: str, resources: ExitStack, *, user_id: str | None = None) -> None:
        self.record = RequestRecord("", live=False)
        self._hold(state, state.keys.named(tenant), resources, user_id)
        self.priority = BATCH_PRIORITY
        resources.callback(self._settle)

    def take(self, answers: int) -> None:
        """Nothing to take."""

    async def take_tokens(
        self, prompts: Sequence[Sequence[int]], *, answers: int, max_tokens: int | None, max_context: int
    ) -> None:
        """Raises :class:`ApiError` 402 when the key's quota is used up."""
        await self._state.limits.check_quota(self._key)


def _tier(key: ApiKey, asked: str | None) -> tuple[int, str]:
    """Priority and name of the tier. A tier that the key does not have is served as the default one, as OpenAI does."""
    if asked == "flex":
        return min(key.priority, FLEX_PRIORITY), "flex"
    if asked == "priority" and key.max_priority is not None and key.max_priority > key.priority:
        return key.max_priority, "priority"
    return key.priority, "default"
