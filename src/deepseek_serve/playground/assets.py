"""The page's files, read once, each with its type and ETag."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parent / "page"
VERSION_MARK = b"@version"  # stands in index.html for the version of all files together
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """One file as it is sent."""

    body: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class Page:
    """All files of the page.

    Attributes:
        version: a hash over every file; it is part of the addresses in ``index``, so that a browser may keep the files
            for good and never mixes those of two releases.
        index: the document at ``/``.
        files: path below ``page/`` -> the file.
    """

    version: str
    index: Asset
    files: Mapping[str, Asset]


@cache
def page() -> Page:
    """Read the page. Raises ``FileNotFoundError`` if the installation lacks it."""
    bodies = {
        path.relative_to(PAGE).as_posix(): path.read_bytes()
        for path in sorted(PAGE.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }
    index = bodies.pop("index.html", None)
    if index is None:
        raise FileNotFoundError(f"the playground's files are missing from {PAGE}; install the package again")
    digest = hashlib.sha256(index)
    for name, body in bodies.items():
        digest.update(name.encode() + b"\0" + body)
    version = digest.hexdigest()[:12]
    files = {name: _asset(name, body) for name, body in bodies.items()}
    return Page(version, _asset("index.html", index.replace(VERSION_MARK, version.encode())), files)


def _asset(name: str, body: bytes) -> Asset:
    return Asset(body, MEDIA_TYPES[Path(name).suffix], f'"{hashlib.sha256(body).hexdigest()[:20]}"')
