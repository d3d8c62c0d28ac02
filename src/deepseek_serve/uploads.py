"""A form with a file, read to the disk as it comes: never held in memory, never longer than allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from deepseek.errors import InvalidRequestError
from deepseek_serve.limits import body_parts, too_large
from deepseek_serve.store.contents import PartialContent
from deepseek_serve.store.files import FileStore

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

OVERHEAD = 64 << 10  # bytes of a form that are not the file
MAX_FIELDS = 16
WRITE_SIZE = 1 << 20  # bytes gathered before a thread writes them


class Form:
    """Takes the bytes of a multipart body apart.

    Attributes:
        fields: fields that are no file.
        filename: of the field ``file``, None before it came.
        pending: bytes of the file that have not been written yet.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending = bytearray()
        self.complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._in_file = False
        self._small = 0
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._on_end,
            "on_end": self._on_form_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def feed(self, data: bytes) -> None:
        """Raises :class:`InvalidRequestError` if it is not multipart, or not such a form as is wanted here."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def _begin(self) -> None:
        self._disposition, self._name, self._in_file = b"", "", False
        self._value.clear()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise InvalidRequestError(
                    "Only one file can be uploaded at a time.", param="file", code="invalid_value"
                )
            if b"filename" not in options:
                raise InvalidRequestError(
                    "The field 'file' must be a file: it has no filename.", param="file", code="invalid_value"
                )
            self.filename = options[b"filename"].decode("utf-8", "replace")
            self._in_file = True
        elif b"filename" in options:
            raise InvalidRequestError(
                f"Unrecognized file supplied: {self._name[:100]}", param=self._name[:100], code="unknown_parameter"
            )
        elif len(self.fields) >= MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} fields")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.pending += data[start:end]
            return
        self._small += end - start
        if self._small > OVERHEAD:
            raise _malformed(f"its fields are longer than {OVERHEAD} bytes")
        self._value += data[start:end]

    def _on_end(self) -> None:
        if self._in_file:
            self._in_file = False
            return
        try:
            self.fields[self._name] = self._value.decode()
        except UnicodeDecodeError:
            raise _malformed(f"the field {self._name[:100]!r} is not UTF-8") from None

    def _on_form_end(self) -> None:
        self.complete = True


async def receive(
    request: Request, files: FileStore, content: PartialContent, *, tenant: str, limit: int, room: int
) -> Form:
    """Read the form; its file's bytes go to ``content``.

    Args:
        limit: bytes that the file may have.
        room: bytes that the tenant may still store, files now being uploaded included.

    Raises :class:`ApiError` 413 as soon as the file is known to be too long, 408 for a client who stops sending,
    400 for what is no such form, :class:`ClientDisconnect`, and :class:`StoreError`.
    """
    form = Form(_boundary(request))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit + OVERHEAD:
        raise too_large(limit)
    received = 0
    with files.upload(tenant, room) as account:
        async for part in body_parts(request):
            received += len(part)
            if received > limit + OVERHEAD:
                raise too_large(limit)
            form.feed(part)
            if content.size + len(form.pending) > limit:
                raise too_large(limit)
            if len(form.pending) >= WRITE_SIZE:
                account(len(form.pending))
                await _write(files, content, form)
        account(len(form.pending))
        await _write(files, content, form)
    if not form.complete:
        raise _malformed("its end is missing")
    return form


async def _write(files: FileStore, content: PartialContent, form: Form) -> None:
    data, form.pending = bytes(form.pending), bytearray()
    if data:
        await files.on_disk(lambda: content.write(data))


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "A file is sent as multipart/form-data, with the fields 'file' and 'purpose'.", code="invalid_content_type"
        )
    return boundary


def _malformed(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"The form could not be read: {problem[:200]}.", code="invalid_form")
