"""``GET /``: the playground, a page that uses this API from a browser. It holds no secrets and needs no key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.playground.assets import Asset, page

router = APIRouter(include_in_schema=False)

# Scripts and styles come from this server's files only; `require-trusted-types-for` makes the browser refuse every way
# of turning a string into markup, so that no answer of a model can become part of the page.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
ASK_AGAIN = "no-cache"  # kept, but asked about every time
KEEP = "public, max-age=31536000, immutable"  # the address changes with the content


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The document."""
    return _answer(request, page().index, ASK_AGAIN)


@router.api_route("/playground/{version}/{path:path}", methods=["GET", "HEAD"])
async def asset(request: Request, version: str, path: str) -> Response:
    """A file of the page; 404 for a file of another release."""
    found = page().files.get(path)
    if found is None or version != page().version:
        raise HTTPException(404)
    return _answer(request, found, KEEP)


def _answer(request: Request, asset: Asset, cache_control: str) -> Response:
    headers = {**SECURITY_HEADERS, "etag": asset.etag, "cache-control": cache_control}
    known = request.headers.get("if-none-match", "")
    if asset.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
        return Response(None, 304, headers)
    return Response(asset.body, 200, headers, asset.media_type)
