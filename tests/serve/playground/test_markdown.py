"""The Markdown renderer, in the browser it is made for: cases, growing text, hostile text."""

# ruff: noqa: E501 - a case and what it becomes, side by side
from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from deepseek_serve.playground.assets import page as assets
from tests.serve.conftest import Server
from tests.serve.playground.conftest import Tab

SHOWN = ("href", "class", "start")

CASES = {
    "headings": ("# One\n###### Six\nTwo\n===", "<h3 md-h1>One</h3><h6 md-h6>Six</h6><h3 md-h1>Two</h3>"),
    "closed heading": ("## a #b ##\n#\n#no", "<h4 md-h2>a #b</h4><h3 md-h1></h3><p>#no</p>"),
    "emphasis": (
        "*a* **b** ***c*** ~~d~~ _e_ __f__ g_h_i 2 * 3",
        "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <del>d</del> <em>e</em> <strong>f</strong> g_h_i 2 * 3</p>",
    ),
    "emphasis beside ideographs": ("**注意：**后面", "<p><strong>注意：</strong>后面</p>"),
    "emphasis without an end": ("**a *b", "<p>**a *b</p>"),
    "breaks": ("a  \nb\\\nc<br>d\ne", "<p>a<br></br>b<br></br>c<br></br>d\ne</p>"),
    "code in text": ("`a` ``b`c`` `d", "<p><code>a</code> <code>b`c</code> `d</p>"),
    "escapes and entities": (r"\*a\* &lt;b&gt; &amp; &#65; &nope;", "<p>*a* <b> & A &nope;</p>"),
    "links": (
        '[a](https://x.y/z "t") <https://b.c> see https://d.e/f. (https://g.h/i_(j))',
        "<p><a https://x.y/z>a</a> <a https://b.c/>https://b.c</a> see <a https://d.e/f>https://d.e/f</a>. "
        "(<a https://g.h/i_(j)>https://g.h/i_(j)</a>)</p>",
    ),
    "a link ends at Chinese punctuation": ("见https://a.b/c。好", "<p>见<a https://a.b/c>https://a.b/c</a>。好</p>"),
    "lists": (
        "- a\n- b\n  - c\n\n1. x\n2. y",
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ul><ol><li><p>x</p></li><li><p>y</p></li></ol>",
    ),
    "loose list": ("- a\n\n- b", "<ul loose><li><p>a</p></li><li><p>b</p></li></ul>"),
    "list from three": ("3) a\n4) b", "<ol 3><li><p>a</p></li><li><p>b</p></li></ol>"),
    "bullets two deep under a number": ("1. a\n  - b\n2. c", "<ol><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ol>"),
    "tasks": ("- [x] a\n- [ ] b", "<ul><li task><p>☑ a</p></li><li task><p>☐ b</p></li></ul>"),
    "code in a list": (
        "- a\n  ```sh\n  ls\n\n  pwd\n  ```\n- b",
        "<ul><li><p>a</p>" + "<figure code><figcaption><span>sh</span><button copy-code>Copy</button></figcaption><pre><code>"
        "<span line>ls\n</span><span line>\n</span><span line>pwd</span></code></pre></figure></li><li><p>b</p></li></ul>",
    ),
    "a list ends a paragraph": ("text\n1. a", "<p>text</p><ol><li><p>a</p></li></ol>"),
    "quote": ("> a\nb\n>\n> - c\n\nd", "<blockquote><p>a\nb</p><ul><li><p>c</p></li></ul></blockquote><p>d</p>"),
    "rule": ("a\n\n---\n***", "<p>a</p><hr></hr><hr></hr>"),
    "table": (
        "| a | b |\n|:-:|--:|\n| `x|y` | \\| |\n| 1",
        "<div table><table><thead><tr><th center>a</th><th right>b</th></tr></thead><tbody><tr><td center><code>x|y</code></td>"
        "<td right>|</td></tr><tr><td center>1</td><td right></td></tr></tbody></table></div>",
    ),
    "table after text": ("see\n| a |\n|---|\n| 1 |", "<p>see</p><div table><table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></div>"),
    "no table": ("a | b\nc | d", "<p>a | b\nc | d</p>"),
    "mathematics stays text": (
        r"$a_1*b*c$ \(x_1*y*z\) costs $5 or $6",
        r"<p><span math>$a_1*b*c$</span> <span math>\(x_1*y*z\)</span> costs $5 or $6</p>",
    ),
    "mathematics in lines of its own": ("$$\na_1*b*c\n$$\n\\[\n_x_\n\\]", "<pre math-block>$$\na_1*b*c\n$$</pre><pre math-block>\\[\n_x_\n\\]</pre>"),
    "HTML is text": ("<b>a</b> <script>alert(1)</script>\n<!-- c -->", "<p><b>a</b> <script>alert(1)</script>\n<!-- c --></p>"),
    "an image is a link": ("![alt](https://x.y/z.png)", "<p><a https://x.y/z.png>image: alt</a></p>"),
    "Windows line ends": ("# a\r\n\r\nb\r\n", "<h3 md-h1>a</h3><p>b</p>"),
    "empty": ("", ""),
}  # fmt: skip

UNSAFE = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "&#106;avascript:alert(1)",
    "\\javascript:alert(1)",
    " javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "file:///etc/passwd",
    "blob:x",
    "//evil.example/x",
    "/v1/models",
    "http:evil",
    "https://",
    "about:blank",
]

HOSTILE = """\
<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 1">
<svg onload="window.pwned = 1"><a xlink:href="javascript:window.pwned=1">x</a></svg>
<iframe srcdoc="<script>parent.pwned = 1</script>"></iframe>
<style>body { display: none }</style><base href="https://evil.example/"><meta http-equiv="refresh" content="0;url=//evil">

[click](javascript:window.pwned=1) [click](data:text/html;base64,PHNjcmlwdD4=) ![x](https://evil.example/beacon.png)
[a"onmouseover="window.pwned=1](https://ok.example/"onclick="x) <https://ok.example/"><script>window.pwned=1</script>>
<javascript:window.pwned=1> [x](<javascript:window.pwned=1>) `<img src=x onerror=alert(1)>`

| <img src=x onerror=window.pwned=1> | b |
|---|---|
| <svg/onload=window.pwned=1> | [x](vbscript:1) |

```html"><script>window.pwned=1</script>
</code></pre><script>window.pwned = 1</script>
```
"""


@pytest.fixture(scope="module")
def renderer(browser: Browser, server: Server) -> Iterator[Page]:
    """A page with ``render`` (the nodes of a text) and ``Markdown`` at hand."""
    context = browser.new_context()
    tab = Tab(context, server.url).open()
    tab.page.evaluate(
        "async (url) => { Object.assign(window, await import(url)) }", f"/playground/{assets().version}/js/markdown.js"
    )
    yield tab.page
    tab.check()
    context.close()


def shown(node: Any) -> str:
    """A node as short markup: the tag with the attributes that the cases look at."""
    if isinstance(node, str):
        return node
    attributes = "".join(f" {value}" for name, value in (node["attrs"] or {}).items() if name in SHOWN)
    return f"<{node['tag']}{attributes}>{''.join(map(shown, node['kids']))}</{node['tag']}>"


@pytest.mark.parametrize("name", CASES)
def test_cases(renderer: Page, name: str) -> None:
    text, wanted = CASES[name]
    assert "".join(map(shown, renderer.evaluate("text => nodesOf(text)", text))) == wanted


@pytest.mark.parametrize("address", UNSAFE)
def test_addresses_that_get_no_link(renderer: Page, address: str) -> None:
    for text in (f"[a]({address})", f"[a](<{address}>)", f"![a]({address})", f"<{address}>"):
        nodes = renderer.evaluate("text => nodesOf(text)", text)
        assert "'tag': 'a'" not in str(nodes), text


GROW = """
async ([text, steps]) => {
  const whole = new Markdown(document.createElement("div"));
  whole.update(text, false);
  const grown = new Markdown(document.createElement("div"));
  for (const end of steps) grown.update(text.slice(0, end), true);
  grown.update(text, false);
  return [whole.container.innerHTML, grown.container.innerHTML];
}
"""


def test_text_that_grows_ends_up_as_text_that_came_at_once(renderer: Page) -> None:
    draw = random.Random(7)
    pieces = [text for text, _ in CASES.values()] + [
        HOSTILE,
        "```py\ndef f():\n    '''a\n    b'''\n",
        "\n",
        "\n\n",
        " ",
        "- ",
        "1. ",
        "    x",
    ]
    texts = [text for text, _ in CASES.values()]
    texts += [draw.choice(["", "\n", "\n\n"]).join(draw.choices(pieces, k=draw.randint(2, 6))) for _ in range(60)]
    for text in texts:
        every = list(range(len(text) + 1))
        some = sorted(draw.sample(every, len(every) // 5))
        for steps in (every, some):
            whole, grown = renderer.evaluate(GROW, [text, steps])
            assert grown == whole, text


def test_finished_blocks_are_left_alone_while_text_grows(renderer: Page) -> None:
    """What the reader has selected or is about to click stays, and the work is that of the new text."""
    text = "# Title\n\n" + "\n\n".join(
        f"Paragraph {i} with **bold** and `code`.\n\n```python\nx = {i}\nprint(x)\n```\n\n- a\n- b" for i in range(150)
    )
    result = renderer.evaluate(
        """async (text) => {
          const view = new Markdown(document.createElement("div"));
          const touched = new Map();
          const seen = [];
          for (let end = 0; end <= text.length; end += 5) {
            const observer = new MutationObserver(() => {});
            observer.observe(view.container, { childList: true, characterData: true, attributes: true, subtree: true });
            const before = view.container.children.length;
            view.update(text.slice(0, end), true);
            let records = 0;
            for (const { target } of observer.takeRecords()) {
              records++;
              let block = target;
              while (block !== view.container && block.parentNode !== view.container) block = block.parentNode;
              const index = block === view.container ? before : [...view.container.children].indexOf(block);
              touched.set(before - index, (touched.get(before - index) ?? 0) + 1);
            }
            seen.push(records);
          }
          return { oldest: Math.max(...touched.keys()), most: Math.max(...seen), blocks: view.container.children.length };
        }""",
        text,
    )
    assert result["blocks"] > 400
    assert result["oldest"] <= 2, "a block before the last two was changed"
    assert result["most"] < 30


ENDLESS = {
    "brackets": "[",
    "images": "![",
    "image links": "![a](",
    "stars": "*a **b ",
    "underscores": "_",
    "ticks": "`a``b```c",
    "angles": "<",
    "quotes": "> ",
    "bullets": "- ",
    "pipes": "|",
    "pipe lines": "|-|\n",
    "formulas": "\\(",
    "dollars": "$a ",
    "entities": "&#",
    "addresses": "http://",
    "fences": "```\n~~~\n",
    "titles": '[a](b "',
    "spaces": " ",
    "hashes": "# ",
    "numbers": "1. ",
    "formula lines": "$$\na\n\n",
    "tildes": "~~a",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_repetition_does_not_hang_the_page(renderer: Page, name: str) -> None:
    """Hours if anything were quadratic and worse; the suite's own time limit decides."""
    text = ENDLESS[name] * (120_000 // len(ENDLESS[name]))
    assert renderer.evaluate("text => nodesOf(text).length >= 0", text)
    assert renderer.evaluate(GROW, [text[:3000] + " end", [1000, 2000, 3000]])


def test_code_is_coloured_and_its_text_unchanged(renderer: Page) -> None:
    samples = {
        "python": (
            'def f(x):\n    """doc\n    more"""\n    return "a" + f\'{x}\'  # why\n',
            {"kw", "fn", "str", "com"},
        ),
        "js": ("const a = `x\ny`; /* b\nc */ function g() { return 0x1F; }", {"kw", "fn", "str", "com", "num"}),
        "json": ('{"a": [1, true, "b"]}', {"key", "num", "kw", "str"}),
        "bash": ('for f in *; do echo "$f" --all; done # c', {"kw", "str", "num", "com"}),
        "sql": ("SELECT a FROM t WHERE b = 'c' -- d", {"kw", "str", "com"}),
        "rust": ("fn main() { let x: u8 = 1; } // c", {"kw", "fn", "num", "com"}),
        "html": ('<a href="x">t</a><!-- c -->', {"kw", "key", "str", "com"}),
        "css": (".a { color: red; } /* c */", {"key", "com"}),
        "yaml": ("a: 1 # c\nb: yes", {"key", "num", "com", "kw"}),
        "diff": ("@@ -1 +1 @@\n-a\n+b\n c", {"fn", "del", "str"}),
        "unknown": ("anything <goes>", set()),
    }
    for language, (code, wanted) in samples.items():
        html, text = renderer.evaluate(
            """text => {
              const view = new Markdown(document.createElement("div"));
              view.update(text, false);
              return [view.container.innerHTML, view.container.querySelector("code").textContent];
            }""",
            f"```{language}\n{code}\n```",
        )
        assert text == code, language
        assert {kind for kind in ("kw", "fn", "str", "com", "num", "key", "del") if f"code-{kind}" in html} >= wanted, (
            language
        )


def test_hostile_answers_stay_text(tab: Tab) -> None:
    tab.ask("[echo]" + HOSTILE)
    page = tab.page
    dangerous = "script, img, svg, iframe, style, base, meta, object, embed, form, input, link"
    assert page.locator(f".md :is({dangerous})").count() == 0
    assert page.evaluate("window.pwned") is None
    links = page.evaluate("[...document.querySelectorAll('.md a')].map(a => [a.protocol, a.rel, a.target])")
    assert links and all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    attributes = page.evaluate(
        "[...new Set([...document.querySelectorAll('.md *')].flatMap(e => e.getAttributeNames()))]"
    )
    assert set(attributes) <= {
        "href",
        "title",
        "target",
        "rel",
        "class",
        "type",
        "tabindex",
        "role",
        "aria-label",
        "start",
    }
    assert "window.pwned = 1" in tab.last_answer()
    page.reload()
    page.wait_for_selector(".md a")
    assert page.evaluate("window.pwned") is None


def test_the_policy_refuses_markup_from_strings(tab: Tab) -> None:
    """Should a way from text to markup ever be written, the browser does not go it."""
    refused = tab.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }"
    )
    assert refused
    assert "TrustedHTML" in "".join(tab.complaints)
    tab.complaints.clear()
