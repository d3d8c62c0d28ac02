"""Whether a constraint of a client can be kept to, found out where it can do no harm."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import msgspec

from deepseek.constraints import Constraint
from deepseek.engine.grammar_worker import CheckLimits
from deepseek.errors import InvalidRequestError
from deepseek.helper import Helper, HelperGoneError

_REMEMBERED = 1024


class ConstraintChecker:
    """Checks constraints in a helper process, started at the first one. Safe to use from several threads.

    What llguidance makes of a grammar is bounded by its own limits and by what :mod:`deepseek.engine.grammar` counts.
    Should one get past both, it ends the helper, and not the server or the engine.
    """

    def __init__(self, limits: CheckLimits | None = None) -> None:
        self._limits = limits or CheckLimits()
        program = ["-m", "deepseek.engine.grammar_worker"]
        self._helper = Helper(program, msgspec.json.encode(self._limits), self._limits.wall_seconds)
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, constraint: Constraint) -> None:
        """Raise :class:`InvalidRequestError` with what is wrong in a constraint."""
        question = _encode(constraint)
        key = hashlib.sha256(question).digest()
        with self._lock:
            known = key in self._verdicts
            problem = self._verdicts.get(key)
        if not known:
            problem = self._ask(question)
            with self._lock:
                self._verdicts[key] = problem
                if len(self._verdicts) > _REMEMBERED:
                    self._verdicts.popitem(last=False)
        if problem is not None:
            raise InvalidRequestError(problem, param="response_format", code="invalid_value")

    def close(self) -> None:
        """End the helper process."""
        self._helper.close()

    def _ask(self, question: bytes) -> str | None:
        try:
            problem: str | None = self._helper.ask(question)["problem"]
        except HelperGoneError:
            return "Invalid response format: it is too complex to be compiled; simplify it."
        return problem


def _encode(constraint: Constraint) -> bytes:
    try:
        return msgspec.json.encode(constraint)
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "Invalid response format: it holds a lone surrogate, which is not valid Unicode.",
            param="response_format",
            code="invalid_value",
        ) from None
