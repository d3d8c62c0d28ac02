"""Reading calls out of a text: what the formats have in common.

The text is read character by character, so that what comes out does not depend on how it was cut into pieces. A call
is held back until its function is known and its arguments have begun; from there on its arguments are handed out as
they come. What turns out to be no call by then is text, to the last character. Arguments that cease to be JSON later
are handed out as the model wrote them, up to the call's end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepseek_serve.parsing.json_scanner import WHITESPACE
from deepseek_serve.parsing.markers import MarkerFinder

Schemas = Mapping[str, dict[str, Any]]
"""The functions that may be called, and the schemas of their arguments."""

Status = Literal["more", "done", "broken"]


@dataclass(frozen=True, slots=True)
class Text:
    """Words that are no part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The call's arguments go on."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The call is whole."""


Event = Text | Begin | Arguments | End


class CallReader(ABC):
    """Reads one call, from behind the marker that opens it.

    Attributes:
        begun: its function is known and its arguments have begun.
        events: what it found, for the parser to take.
    """

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self.begun = False
        self.events: list[Event] = []

    @abstractmethod
    def push(self, char: str) -> Status:
        """Go on behind ``char``: there is more to come, the call is whole, or this is no call of the format."""

    def begin(self, name: str) -> None:
        self.begun = True
        self.events.append(Begin(name))

    def arguments(self, text: str) -> None:
        self.events.append(Arguments(text))


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How calls are told from words.

    Attributes:
        begin: marker in front of a call.
        ends: markers behind it; none if nothing ends it but itself.
        silent: markers that may stand around calls and mean nothing.
        bare: a call may begin without a marker, with ``{``, where an answer begins and behind another call.
        fence: what may stand in front of a bare call.
        filler: characters that may stand between a call and its end marker or the next bare call.
    """

    begin: str
    ends: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    bare: bool = False
    fence: str = ""
    filler: str = WHITESPACE

    @property
    def all(self) -> tuple[str, ...]:
        return (self.begin, *self.ends, *self.silent)


class CallParser:
    """Divides a text into words and calls. Whitespace next to a call belongs to neither.

    Args:
        marks: of the format.
        reader: makes the reader of the next call.
        single: behind a call no bare one may follow.
    """

    def __init__(self, marks: Marks, reader: Callable[[], CallReader], *, single: bool = False) -> None:
        self._marks = marks
        self._bare_may_follow = marks.bare and not single
        self._new_reader = reader
        self._events: list[Event] = []
        self._finder = MarkerFinder((marks.begin, *marks.silent, *filter(None, [marks.fence])))
        self._ending = MarkerFinder(marks.ends)
        self._state: Literal["text", "call", "broken", "behind"] = "text"
        self._reader: CallReader | None = None
        self._raw = ""  # what the call that is being read has had, while it may still turn out to be none
        self._opened_by = ""
        self._space = ""  # whitespace at the end of the words
        self._may_be_bare = marks.bare
        self._called = False  # nothing visible since the last call

    def push(self, text: str) -> list[Event]:
        """What ``text`` adds."""
        for char in text:
            self._push(char)
        return self._take()

    def finish(self) -> list[Event]:
        """What was held back to the end."""
        if self._state == "call" and self._reader is not None and not self._reader.begun:
            self._say(self._opened_by + self._raw)
        elif self._state == "broken":
            self._events.append(Arguments(self._ending.take()))
        elif self._state == "text":
            self._say(self._finder.take())
        if self._space and not self._called:
            self._events.append(Text(self._space))
        self._space = ""
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return [event for event in events if not isinstance(event, Text | Arguments) or event.text]

    def _push(self, char: str) -> None:
        match self._state:
            case "text":
                self._push_text(char)
            case "call":
                self._push_call(char)
            case "broken":
                self._push_broken(char)
            case "behind":
                self._push_behind(char)

    def _push_text(self, char: str) -> None:
        if self._may_be_bare and char == "{" and not self._finder.held:
            self._open("")
            self._push_call(char)
            return
        found, marker = self._finder.push(char)
        self._say(found)
        if marker == self._marks.begin or (marker and marker == self._marks.fence and self._may_be_bare):
            self._open(marker)
        elif marker not in self._marks.silent:
            self._say(marker)

    def _open(self, marker: str) -> None:
        self._state, self._opened_by, self._raw = "call", marker, ""
        self._reader = self._new_reader()

    def _push_call(self, char: str) -> None:
        reader = self._reader
        assert reader is not None
        begun = reader.begun
        self._raw += "" if begun else char
        status = reader.push(char)
        if reader.begun and not begun:
            self._space = ""
        self._events += reader.events
        reader.events = []
        if status == "done":
            self._events.append(End())
            self._state, self._reader, self._raw = "behind", None, ""
            self._called, self._may_be_bare = True, self._bare_may_follow
        elif status == "broken" and reader.begun:
            self._state = "broken"
            self._push_broken(char)
        elif status == "broken":
            self._no_call()

    def _no_call(self) -> None:
        """What was read as a call is text, in which other calls may begin."""
        raw, self._raw = self._raw, ""
        self._state, self._reader, self._may_be_bare = "text", None, False
        self._say(self._opened_by)
        for char in raw:
            self._push(char)

    def _push_broken(self, char: str) -> None:
        found, marker = self._ending.push(char)
        self._events.append(Arguments(found))
        if marker:
            self._events.append(End())
            self._state, self._reader, self._called = "text", None, True

    def _push_behind(self, char: str) -> None:
        """Behind a whole call: its end marker, perhaps after something that means nothing."""
        if char in self._marks.filler and not self._ending.held:
            self._raw += char
            return
        held = self._raw + self._ending.held + char
        other, marker = self._ending.push(char)
        if other or marker:
            self._ending.take()
            self._state, self._raw = "text", ""
        if other:
            self._resume(held)

    def _resume(self, held: str) -> None:
        """There is no end marker. The next bare call may follow, or words."""
        rest = held.lstrip(self._marks.filler)
        if self._bare_may_follow and rest.startswith(("{", self._marks.begin[0])):
            held = rest
        for char in held:
            self._push(char)

    def _say(self, text: str) -> None:
        for char in text:
            if char in WHITESPACE:
                self._space += char
            else:
                self._events.append(Text(self._space + char))
                self._space, self._called, self._may_be_bare = "", False, False
