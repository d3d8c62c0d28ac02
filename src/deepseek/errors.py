"""Every exception this project raises on purpose.

DeepSeekError
├── ConfigurationError           a setting that cannot work; the message names it
│   ├── UnsupportedModelError    an architecture or a config key that is not implemented
│   └── BackendUnavailableError  a kernel backend asked for by name that cannot run here
├── HubError                     a model's files cannot be had
│   ├── ModelNotFoundError       no such name; carries the nearest known ones
│   ├── DownloadError            the source did not answer, or not in full
│   ├── DiskSpaceError           the cache has no room
│   └── IntegrityError           the bytes are not the ones that were promised
├── CheckpointError              the files are there, but damaged or not a model
│   └── AdapterError             an adapter that cannot be served, or does not fit the model; carries all reasons
├── TokenizerError               a tokenizer that cannot be built or used
│   └── ChatTemplateError        a chat template that fails, loops or writes without end
├── BenchmarkError               a measurement that could not be made
├── DataError                    data that cannot be used; carries what was wrong with which rows
├── TrainingError                a training run that cannot go on
├── EvaluationError              an evaluation that cannot go on
│   └── SpendingCapError         the next answer might cost more than is left to spend
├── InvalidRequestError          a request's value that cannot be served; names the parameter
│   ├── ContextLengthError       prompt and answer do not fit the context
│   └── UnknownAdapterError      no adapter of this name is loaded; carries the names of those that are
├── EngineError                  the engine cannot go on with a request
│   ├── EngineStartError         the engine process did not come up
│   ├── EngineDeadError          the engine process ended under a request
│   └── EngineOverloadedError    no room for another request now
└── RemoteError                  what a client is told by a server, or that there is none
    ├── UnreachableError         no connection, no answer in time, or not ready in time
    ├── UnauthorizedError        401, 403: the key
    ├── QuotaExceededError       402: the key's tokens of the month
    ├── RateLimitedError         429: the key's requests or tokens at a time; when to come again
    ├── OverloadedError          503: the server's room, or it is starting; when to come again
    ├── RejectedError            other 4xx: this request will never be served as it is
    │   └── ContextTooLongError  prompt and answer do not fit the model's context
    ├── AnswerFailedError        5xx, an error inside a stream, a batch's line without an answer
    └── BatchError               a batch that failed, or has not ended in time
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class DeepSeekError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` says what is wrong, where, and what to do."""


class ConfigurationError(DeepSeekError, ValueError):
    """A setting that cannot work."""


class UnsupportedModelError(ConfigurationError):
    """The checkpoint asks for an architecture or a feature that is not implemented."""


class BackendUnavailableError(ConfigurationError):
    """A kernel backend was asked for by name and cannot run on this machine."""


class HubError(DeepSeekError):
    """A model's files cannot be had."""


class ModelNotFoundError(HubError):
    """No model has this name.

    Attributes:
        name: the name as it was asked for.
        suggestions: the nearest known names, best first.
    """

    def __init__(self, name: str, suggestions: Sequence[str] = (), detail: str = "") -> None:
        self.name = name
        self.suggestions = tuple(suggestions)
        message = f"unknown model {name!r}"
        if detail:
            message += f": {detail}"
        if self.suggestions:
            message += ". Did you mean " + " or ".join(repr(s) for s in self.suggestions) + "?"
        else:
            message += "."
        super().__init__(message + " `deepseek models` lists the built-in names.")


class DownloadError(HubError):
    """The source did not answer, or not in full. Running the same command again resumes."""


class DiskSpaceError(HubError):
    """The cache has no room for the model."""


class IntegrityError(HubError):
    """The bytes that arrived are not the ones that were promised."""


class CheckpointError(DeepSeekError):
    """The model's files are damaged, truncated, or not what their name says."""


class AdapterError(CheckpointError):
    """An adapter that is damaged, cannot be served, or does not fit the model.

    Attributes:
        problems: everything that is wrong, one line each.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        shown = [*self.problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        super().__init__("\n  ".join([f"{message}:", *shown]) if shown else message)


class TokenizerError(DeepSeekError):
    """A tokenizer that cannot be built or used."""


class ChatTemplateError(TokenizerError):
    """A chat template that is malformed, fails, runs too long or writes too much."""


class BenchmarkError(DeepSeekError):
    """A measurement could not be made: the message names the engine or program and what it did."""


class DataError(DeepSeekError, ValueError):
    """Data that cannot be used: the message names the file, the rows and what to do."""


class TrainingError(DeepSeekError):
    """A training run cannot go on: the loss is no number. The message names the step and the rows of its batch."""


class EvaluationError(DeepSeekError):
    """An evaluation cannot go on: the model under test is gone, refuses the key, or the results cannot be written."""


class SpendingCapError(EvaluationError):
    """The next answer might cost more than is left to spend. What was answered is kept."""


class InvalidRequestError(DeepSeekError, ValueError):
    """A request's value that cannot be served.

    Attributes:
        param: the request field at fault, or None.
        code: a short machine-readable reason, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """Prompt and requested answer do not fit into the context."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class UnknownAdapterError(InvalidRequestError):
    """No adapter of this name is loaded.

    Attributes:
        name: as it was asked for.
        known: names of those that are loaded.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, tuple(known)
        there = f"loaded are {', '.join(map(repr, self.known))}" if self.known else "none is loaded"
        super().__init__(f"there is no adapter {name[:100]!r}; {there}.", param="adapter", code="adapter_not_found")


class EngineError(DeepSeekError):
    """The engine cannot go on with a request."""


class EngineStartError(EngineError):
    """The engine process did not come up; the message carries its reason."""


class EngineDeadError(EngineError):
    """The engine process ended while it had this request. It is being restarted: send it again."""


class EngineOverloadedError(EngineError):
    """The engine has no room for another request now.

    Attributes:
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RemoteError(DeepSeekError):
    """What a client is told by a server. Raised errors are errors of the OpenAI SDK too, where it has one for this.

    Attributes:
        status_code: HTTP status; None without an answer, and inside a stream.
        code: a short machine-readable reason, or None.
        param: the request field at fault, or None.
        type: the error's kind, as the API names it, or None.
        request_id: what the server's log calls the request, or None.
        retry_after: seconds after which the server wants to be asked again, None if it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.param = param
        self.type = type
        self.request_id = request_id
        self.retry_after = retry_after


class UnreachableError(RemoteError):
    """No server answered, or it was not ready in time."""


class UnauthorizedError(RemoteError):
    """The key is missing, wrong, or may not do this."""


class QuotaExceededError(RemoteError):
    """The key's tokens of this month are used up."""


class RateLimitedError(RemoteError):
    """The key's requests, tokens or answers at a time are used up until ``retry_after``."""


class OverloadedError(RemoteError):
    """The server has no room now, or is starting or restarting; ``retry_after`` says when to ask again."""


class RejectedError(RemoteError):
    """The request cannot be served as it is: ``param`` and ``code`` say why."""


class ContextTooLongError(RejectedError):
    """Prompt and answer do not fit the model's context."""


class AnswerFailedError(RemoteError):
    """The server failed with the request, perhaps when a part of the answer was there."""


class BatchError(RemoteError):
    """A batch failed as a whole, or has not ended in time.

    Attributes:
        batch_id: to ask for it again.
    """

    def __init__(self, message: str, *, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id
