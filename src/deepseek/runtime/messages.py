"""What crosses the process boundary: msgpack of tagged structs, over one local ZeroMQ socket pair."""

from __future__ import annotations

import msgspec

from deepseek.engine.events import EngineEvent, EngineInfo, EngineRequest, EngineStats


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop a request: its pages are free at the next step. Unknown ids are ignored (it may just have ended)."""

    request_id: str


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Serve the adapter in ``folder`` as ``name``, in the place of one of that name. Answered by an
    :class:`deepseek.engine.events.AdapterEvent`, or by a terminal :class:`deepseek.engine.events.TokenEvent` with the
    error."""

    request_id: str
    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload_adapter"):
    """Serve an adapter no more; requests that use it go on. Answered as :class:`LoadAdapter` is."""

    request_id: str
    name: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Asks for a :class:`Pong`; answered between two engine steps, so a frozen engine does not answer."""

    nonce: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the engine process; requests still running get a terminal event first."""


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How far a process that loads is: tensors that are there, of how many."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """First message of an engine process that has loaded its model, but for :class:`Loading`."""

    info: EngineInfo
    pid: int


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """Last message of an engine process that could not load. ``permanent``: starting again would fail the same way."""

    message: str
    permanent: bool


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    nonce: int
    stats: EngineStats


class Events(msgspec.Struct, frozen=True, tag="events"):
    """The events of one engine step."""

    events: list[EngineEvent]
    stats: EngineStats


ToEngine = EngineRequest | Cancel | LoadAdapter | UnloadAdapter | Ping | Shutdown
FromEngine = Loading | Ready | StartFailed | Pong | Events
