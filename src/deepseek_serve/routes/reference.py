"""``GET /openapi.json``: what this server can be asked; ``GET /docs``: the same as a page, all from here."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI styles its elements
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DeepSeek V2.1: reference</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="reference"></div>
<noscript>This page needs JavaScript. The description itself is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Without `validatorUrl` the page would ask a server of somebody else whether the description is valid.
START = """window.SwaggerUIBundle({
  url: "openapi.json", dom_id: "#reference", deepLinking: true, filter: true, tryItOutEnabled: true,
  validatorUrl: null, persistAuthorization: false, docExpansion: "list", defaultModelsExpandDepth: 0,
});
"""
BUNDLED = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The description."""
    return Response(request.app.state.describe(), media_type="application/json")


@router.api_route("/docs", methods=["GET", "HEAD"])
async def page() -> Response:
    """The page."""
    return Response(PAGE, 200, HEADERS, "text/html")


@router.api_route("/docs/{name}", methods=["GET", "HEAD"])
async def asset(name: str) -> Response:
    """A file of the page: Swagger UI, as the package fastapi-offline brings it."""
    if name == "start.js":
        return Response(START, 200, HEADERS, "text/javascript")
    if name not in BUNDLED:
        raise HTTPException(404)
    body = files("fastapi_offline").joinpath("static", name).read_bytes()
    return Response(body, 200, {**HEADERS, "cache-control": "max-age=86400"}, BUNDLED[name])
