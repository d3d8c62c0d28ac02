"""``/v1/files``: objects, and the lists that files and batches share."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.store.files import FileRecord, Page

PURPOSES = ("batch", "user_data", "assistants", "vision", "fine-tune", "evals")
MIN_LIFETIME, MAX_LIFETIME = 3600, 30 * 86_400  # seconds
MAX_FILENAME = 255


class FileObject(msgspec.Struct):
    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: None = None
    object: str = "file"


class Deleted(msgspec.Struct):
    id: str
    object: str
    deleted: bool = True


class ObjectList(msgspec.Struct):
    """A page; ``has_more`` with ``after=last_id`` leads to the next one."""

    data: list[Any]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


def file_object(record: FileRecord) -> FileObject:
    return FileObject(record.id, record.bytes, record.created_at, record.expires_at, record.filename, record.purpose)


def object_list(objects: list[Any], has_more: bool) -> ObjectList:
    first, last = (objects[0].id, objects[-1].id) if objects else (None, None)
    return ObjectList(objects, has_more, first, last)


def page(query: Any, *, default: int, most: int) -> Page:
    """``after``, ``limit`` and ``order`` of a list call. Raises :class:`InvalidRequestError`."""
    order: Literal["asc", "desc"] = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidFieldError("order", "it must be 'asc' or 'desc'")
    return Page(query.get("after") or None, whole_number(query, "limit", default=default, least=1, most=most), order)


def whole_number(query: Any, name: str, *, default: int, least: int, most: int) -> int:
    """A number of the query string. Raises :class:`InvalidRequestError`."""
    text = query.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1
    if not least <= number <= most:
        raise InvalidFieldError(name, f"it must be a whole number from {least} to {most}")
    return number


def lifetime(fields: dict[str, str]) -> int | None:
    """Seconds of ``expires_after``, as forms spell it. Raises :class:`InvalidRequestError`."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidFieldError("expires_after.anchor", "it must be 'created_at'")
    given = {"expires_after.seconds": seconds or ""}
    return whole_number(given, "expires_after.seconds", default=0, least=MIN_LIFETIME, most=MAX_LIFETIME)


def purpose_of(fields: dict[str, str]) -> str:
    """The upload's purpose. Raises :class:`InvalidRequestError`."""
    purpose = fields.get("purpose")
    if not purpose:
        raise InvalidRequestError(
            "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if purpose not in PURPOSES:
        known = ", ".join(repr(name) for name in PURPOSES)
        raise InvalidFieldError("purpose", f"{purpose[:40]!r} is none of {known}")
    return purpose


def plain_name(name: str) -> str:
    """A client's file name, to show only: its last part, without control characters, not too long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(char for char in last if char.isprintable()).strip()
    while len(kept.encode()) > MAX_FILENAME:
        kept = kept[:-1]
    return kept if kept not in ("", ".", "..") else "file"
