"""The sandbox: what templates may do, and that none of them can hang or exhaust us."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from deepseek.errors import ChatTemplateError
from deepseek.tokenizer.chat_template import ChatTemplate, TemplateLimits

QUICK = TemplateLimits(cpu_seconds=0.3)


def render(source: str, limits: TemplateLimits | None = QUICK, **context: Any) -> str:
    template = ChatTemplate(source, limits)
    try:
        return template.render(context)
    finally:
        template.close()


@pytest.fixture
def hello() -> Iterator[ChatTemplate]:
    template = ChatTemplate("Hello {{ name }}")
    yield template
    template.close()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for x in xs %}\n  {% if x > 2 %}{% break %}{% endif %}\n{{ x }}\n{% endfor %}\nend", "1\n2\nend"),
        ("{% for x in xs %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{{ {'b': '<\u4e16>', 'a': [1, none, true]} | tojson }}", '{"b": "<\u4e16>", "a": [1, null, true]}'),
        ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
        ("{% set ns = namespace(n=0) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "6"),
        ("a{% generation %}b{{ xs[0] }}{% endgeneration %}c", "ab1c"),
        ("{% macro m(v) %}[{{ v }}]{% endmacro %}{{ m(xs | length) }}", "[3]"),
        ("{{ missing }}|{{ xs is defined }}", "|True"),
    ],
)
def test_what_templates_use(source: str, expected: str) -> None:
    assert render(source, xs=[1, 2, 3]) == expected


def test_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


ENDLESS = {
    "a huge range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output without end": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    "a long string": "{{ 'a' * 10**9 }}",
    "a long list": "{{ ([0] * 10**9) | length }}",
    "a huge number": "{{ 10**(10**10) }}",
    "a huge number from a variable": "{{ n**(n**n) }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "padding": "{{ 'a'.ljust(10**10) }}",
    "a format": "{{ '%9999999999d' | format(1) }}",
    "a filter": "{{ 'a' | center(10**10) }}",
    "indented JSON": "{{ [[[]]] | tojson(indent=10**10) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "macros without end": "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(60) }}",
}  # fmt: skip


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_what_would_not_end_is_stopped(source: str, hello: ChatTemplate) -> None:
    template = ChatTemplate(source, QUICK)
    started = time.process_time(), time.perf_counter()
    for _ in range(2):  # the second time with a new helper
        with pytest.raises(ChatTemplateError):
            template.render({"n": 99})
    assert time.process_time() - started[0] < 1.0  # nothing of it happened in this process
    assert time.perf_counter() - started[1] < 8.0
    template.close()
    assert hello.render({"name": "you"}) == "Hello you"


def test_the_limit_on_output() -> None:
    limits = TemplateLimits(max_output=1000)
    assert len(render("{{ 'a' * 1000 }}", limits)) == 1000
    with pytest.raises(ChatTemplateError, match="more than 1000 characters"):
        render("{{ 'a' * 1000 }}b", limits)


def test_the_message_says_that_it_looped() -> None:
    with pytest.raises(ChatTemplateError, match=r"longer than 0\.3 s.*loops"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_other_threads_go_on_meanwhile(hello: ChatTemplate) -> None:
    endless = ChatTemplate(ENDLESS["nested loops"], TemplateLimits(cpu_seconds=1.0))
    failures: list[ChatTemplateError] = []

    def render_endless() -> None:
        try:
            endless.render({})
        except ChatTemplateError as error:
            failures.append(error)

    thread = threading.Thread(target=render_endless)
    hello.render({"name": "warm"})
    thread.start()
    rendered = 0
    while thread.is_alive():
        assert hello.render({"name": "x"}) == "Hello x"
        rendered += 1
    assert rendered > 20
    assert len(failures) == 1
    endless.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ok\n{% if x %}\n{{ y }", "malformed at line 3"),
        ("a\n{% endfor %}", "malformed at line 2"),
        ("a\nb\n{{ 1 // 0 }}", "line 3.*ZeroDivisionError"),
        ("a\n{{ x.y.z }}", "line 2.*UndefinedError"),
        ("{{ 'a' | nosuchfilter }}", "nosuchfilter"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% include 'other' %}", "TypeError|no loader"),
        ("{% import '/etc/passwd' as x %}", "TypeError|no loader"),
    ],
)
def test_errors_name_line_and_reason(source: str, message: str) -> None:
    template = ChatTemplate(source)
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=message):
            template.render({})
    template.close()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ (xs | attr('append'))(4) }}{% set _ = xs.append(4) %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__}'.format(xs) }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    try:
        shown = render(source, xs=[1])
    except ChatTemplateError as error:
        assert "SecurityError" in str(error) or "UndefinedError" in str(error)
    else:
        assert shown == ""  # an attribute that may not be seen is undefined


def test_what_json_cannot_carry_is_refused(hello: ChatTemplate) -> None:
    with pytest.raises(ChatTemplateError, match="cannot be given"):
        hello.render({"name": object()})


def test_a_dead_helper_is_replaced(hello: ChatTemplate) -> None:
    hello.render({"name": "a"})
    assert hello._helper._process is not None
    os.kill(hello._helper._process.pid, signal.SIGKILL)
    hello._helper._process.wait()
    assert hello.render({"name": "b"}) == "Hello b"


def test_a_stopped_helper_is_given_up() -> None:
    template = ChatTemplate("x", TemplateLimits(wall_seconds=0.2))
    template.render({})
    assert template._helper._process is not None
    os.kill(template._helper._process.pid, signal.SIGSTOP)
    with pytest.raises(ChatTemplateError, match=r"within 0\.2 s"):
        template.render({})
    assert template.render({}) == "x"
    template.close()


def test_the_helper_ends_with_its_template() -> None:
    template = ChatTemplate("x")
    template.render({})
    worker = template._helper._process
    assert worker is not None
    del template
    assert worker.poll() is not None


def test_a_large_context_and_a_large_result(hello: ChatTemplate) -> None:
    name = "\u4e16" * 1_000_000
    assert hello.render({"name": name}) == "Hello " + name
