"""One response from its admission to its end, whichever way it goes out: whole, in events, or in the background."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET

from deepseek.errors import DeepSeekError
from deepseek_serve.answers import pieces
from deepseek_serve.errors import ApiError, api_error
from deepseek_serve.generation import Job
from deepseek_serve.protocol.responses_api.objects import (
    Completed,
    Created,
    ErrorEvent,
    Event,
    Failed,
    Incomplete,
    IncompleteEnd,
    InProgress,
    InputDetails,
    OutputDetails,
    Queued,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
)
from deepseek_serve.protocol.responses_api.request import ResponseRequest, ToolChoice
from deepseek_serve.responses.live import LIFETIME
from deepseek_serve.responses.writer import OutputWriter
from deepseek_serve.state import ServerState
from deepseek_serve.store.responses import UNFINISHED, ResponseRecord
from deepseek_serve.streaming import named_event

logger = logging.getLogger("deepseek.serve")


class ResponseRun:
    """A response whose place is taken, and which has yet to be computed.

    Attributes:
        response: as far as it is.
    """

    def __init__(self, state: ServerState, job: Job, body: ResponseRequest, tenant: str) -> None:
        self._state = state
        self._job = job
        self._body = body
        self._tenant = tenant
        self._writer = OutputWriter()
        self._number = 0
        self._failure: Exception | None = None
        self.response = _begun(job, body)

    async def keep(self, items: Sequence[dict[str, Any]]) -> None:
        """Store its beginning, if it is to be stored at all. Raises :class:`StoreError`."""
        if not self._body.stored:
            return
        response, now = self.response, self._state.store.clock.now()
        await self._state.store.responses.add(
            ResponseRecord(
                id=response.id,
                tenant=self._tenant,
                created_at=now,
                expires_at=now + LIFETIME,
                model=response.model,
                status=response.status,
                previous_id=response.previous_response_id,
                body=msgspec.json.encode(response).decode(),
                input_items=msgspec.json.encode(items).decode(),
                owner=self._state.responses.owner,
            )
        )

    async def whole(self) -> ResponseObject:
        """The response at its end. Raises what the engine failed with."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        if self._failure is not None:
            raise self._failure
        return self.response

    async def written(self) -> AsyncGenerator[bytes, None]:
        """Its :meth:`events`, as they are sent."""
        async with aclosing(self.events()) as events:
            async for event in events:
                yield _written(event)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Its events; close it if it is left early.

        In the background they begin at once, otherwise with the answer's first piece: what the engine fails with
        before that is raised, so that clients are told by a status and try again. Later it is an event.
        """
        background, begun = self.response.background, False
        whole = True
        try:
            if background:
                yield self._numbered(Created(self.response))
                yield self._numbered(Queued(self.response))
            async with aclosing(pieces(self._job)) as found:
                async for _, piece in found:
                    if not begun:
                        begun = True
                        await self._change("in_progress", save=background)
                        if not background:
                            yield self._numbered(Created(self.response))
                        yield self._numbered(InProgress(self.response))
                    for event in self._writer.push(piece):
                        yield self._numbered(event)
                    whole = whole and piece.finish_reason != "length"
            for event in self._writer.end(whole=whole):
                yield self._numbered(event)
            await self._end("completed" if whole else "incomplete")
            yield self._numbered((Completed if whole else IncompleteEnd)(self.response))
        except Exception as error:
            self._failure = error
            if not isinstance(error, DeepSeekError):
                logger.exception("%s failed", self.response.id)
            await self._end("failed", error)
            if not begun and not background:
                raise
            yield self._numbered(Failed(self.response))

    def close(self) -> None:
        """Nobody goes on with it: if it has no end yet, it is cancelled."""
        if self.response.status in UNFINISHED:
            self._finish("cancelled")
            if self._body.stored:
                self._state.responses.save_soon(self._tenant, self.response)

    def error_event(self, error: ApiError) -> bytes:
        """What a stream that cannot go on says last."""
        told = error.body
        return _written(self._numbered(ErrorEvent(told.message, told.code, told.param)))

    async def _end(self, status: str, error: Exception | None = None) -> None:
        self._finish(status, error)
        if self._body.stored:
            await self._state.responses.save(self._tenant, self.response)

    async def _change(self, status: str, *, save: bool) -> None:
        self.response = msgspec.structs.replace(self.response, status=status)
        if save:
            await self._state.responses.save(self._tenant, self.response)

    def _finish(self, status: str, error: Exception | None = None) -> None:
        self._writer.break_off()
        now = self._state.store.clock.now()
        told = None if error is None else api_error(error).body
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            output=self._writer.output,
            completed_at=now if status == "completed" else None,
            error=None if told is None else ResponseFailure("server_error", told.message),
            incomplete_details=Incomplete("max_output_tokens") if status == "incomplete" else None,
            usage=_usage(self._job) if self._job.choices[0].completion_tokens else None,
        )

    def _numbered(self, event: Event) -> Event:
        event.sequence_number = self._number
        self._number += 1
        return event


def _written(event: Event) -> bytes:
    return named_event(str(event.__struct_config__.tag), msgspec.json.encode(event))


def _begun(job: Job, body: ResponseRequest) -> ResponseObject:
    params, choice, text = job.params, body.tool_choice, body.text
    reasoning = body.reasoning
    given = text.format.model_dump(by_alias=True, exclude_none=True) if text and text.format else {"type": "text"}
    return ResponseObject(
        id=job.name,
        created_at=job.created,
        model=body.model,
        status="queued" if body.background else "in_progress",
        output=[],
        background=bool(body.background),
        store=body.stored,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        safety_identifier=body.safety_identifier,
        service_tier=job.service_tier if job.service_tier is not UNSET else "default",
        temperature=params.temperature,
        text={"format": given, "verbosity": "medium"},
        tool_choice=choice.model_dump(exclude_none=True) if isinstance(choice, ToolChoice) else choice or "auto",
        tools=[tool.model_dump() for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
    )


def _usage(job: Job) -> ResponseUsage:
    used = job.usage()
    return ResponseUsage(
        used.prompt_tokens,
        InputDetails(used.prompt_tokens_details.cached_tokens),
        used.completion_tokens,
        OutputDetails(used.completion_tokens_details.reasoning_tokens),
        used.total_tokens,
    )
