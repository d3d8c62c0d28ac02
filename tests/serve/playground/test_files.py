"""How the page is served: headers, caching, the option to leave it out, and that it is in the packages."""

from __future__ import annotations

import re

import httpx
import pytest

from deepseek_serve.playground.assets import PAGE, page
from tests.serve.conftest import Server, running_server


def test_the_document(http: httpx.Client) -> None:
    response = http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert "<script>" not in response.text and "style=" not in response.text and "onclick" not in response.text
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", response.text), "something comes from elsewhere"


def test_security_headers(http: httpx.Client) -> None:
    for path in ("/", f"/playground/{page().version}/js/app.js"):
        headers = http.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"


def test_every_file_is_served_and_every_address_in_the_document_exists(http: httpx.Client) -> None:
    document = http.get("/").text
    for address in re.findall(r'(?:src|href)="(playground/[^"]+)"', document):
        assert http.get("/" + address).status_code == 200, address
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    files = [path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()]
    assert len(files) > 15
    for name in files:
        if name == "index.html":
            continue
        response = http.get(f"/playground/{page().version}/{name}")
        assert response.status_code == 200, name
        assert response.headers["content-type"] == types[name.rpartition(".")[2]]
        assert "immutable" in response.headers["cache-control"]
        assert response.content == (PAGE / name).read_bytes()


def test_etags(http: httpx.Client) -> None:
    for path in ("/", f"/playground/{page().version}/css/base.css"):
        etag = http.get(path).headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}'):
            again = http.get(path, headers={"if-none-match": known})
            assert again.status_code == 304 and not again.content
            assert again.headers["etag"] == etag and "content-security-policy" in again.headers
        assert http.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_head(http: httpx.Client) -> None:
    response = http.head("/")
    assert response.status_code == 200 and not response.content
    assert int(response.headers["content-length"]) == len(http.get("/").content)


@pytest.mark.parametrize(
    "path",
    [
        "old/js/app.js",
        "{v}/js/none.js",
        "{v}/index.html",
        "{v}/../assets.py",
        "{v}/js/../../assets.py",
        "{v}/",
        "{v}//etc/passwd",
    ],
)
def test_no_other_file(http: httpx.Client, path: str) -> None:
    request = httpx.Request(
        "GET", f"{http.base_url}/playground/{path.format(v=page().version)}".replace("..", "%2e%2e")
    )
    response = http.send(request)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


def test_no_playground() -> None:
    with running_server(playground=False) as server, server.client() as http:
        for path in ("/", f"/playground/{page().version}/js/app.js"):
            assert http.get(path).status_code == 404
        assert http.get("/v1/models").status_code == 200


def test_the_page_needs_no_key_and_gives_nothing_away(server: Server) -> None:
    with running_server(api_keys=("sk-secret",)) as locked, locked.client() as http, server.client() as other:
        assert http.get("/").text == other.get("/").text
        assert http.get("/metrics").status_code == 200
        assert http.get("/v1/models").status_code == 401
