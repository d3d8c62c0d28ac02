"""What is known of one request when it has ended: the access log, the metrics and the traces are made of it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(given: str | None) -> str:
    """The client's request id if it is a sane one, else a new one."""
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return f"req_{uuid.uuid4().hex}"


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request on its way. Times are ``time.monotonic``, 0.0 while they have not come.

    Attributes:
        request_id: as in the header ``x-request-id``.
        method: of HTTP.
        path: as asked for, without the query, which may hold secrets.
        headers: of the request, those that traces need.
        live: False for a line of a batch, whose times say nothing about the node.
        started: when the request came.
        wall: the same on the wall clock, nanoseconds since 1970.
        route: path of the route with its placeholders, ``other`` if there is none.
        status: of the response; 499 if the client went away before it.
        error_code: ``code`` of the error body, if there is one.
        key: name of the API key.
        model: public name of the model that answers.
        response_id: ``id`` of the answer.
        stream: the answer is streamed.
        choices: answers asked for.
        submitted: when the engine got it.
        scheduled: when it first got a place in a step of the engine.
        first_token: when the first token came.
        last_token: when the last one came.
        prompt_tokens: of all prompts.
        cached_tokens: of these, found in the prefix cache.
        completion_tokens: of all choices.
        finish_reasons: of the choices that have ended, in the order of their ends.
        cancelled: the client went away before the end.
        sampling: settings of the request that traces show.
        ended: when the last byte had been sent.
    """

    request_id: str
    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    live: bool = True
    started: float = field(default_factory=time.monotonic)
    wall: int = field(default_factory=time.time_ns)
    route: str = "other"
    status: int = 0
    error_code: str | None = None
    key: str = ""
    model: str = ""
    response_id: str = ""
    stream: bool = False
    choices: int = 0
    submitted: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    cancelled: bool = False
    sampling: Mapping[str, int | float] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def queue_time(self) -> float | None:
        """Seconds between being given to the engine and the first step; None if it never was in one."""
        return max(0.0, self.scheduled - self.submitted) if self.scheduled and self.submitted else None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request's coming to its first token."""
        return self.first_token - self.started if self.first_token else None
