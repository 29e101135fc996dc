"""Templates that try to exhaust a machine's time, memory or stack, and what chat templates may do."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import jinja2
import pytest

from pyllama_long.sandbox import MAX_SOURCE, Environment
from pyllama_long.sandbox_budget import Budget, Stopped, TooMuch

ENVIRONMENT = Environment()
DOUBLED = (
    "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
)
HOSTILE = [
    "{{ 'a' * 3000000000 }}",
    "{{ 3000000000 * 'a' }}",
    "{{ [1] * 3000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a).1000000000f' % {'a': 1} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ ('a,' * 1000000).replace(',', 'b' * 1000000) }}",
    "{{ ('a,' * 1000000) | replace(',', 'b' * 1000000) }}",
    "{{ (['a' * 10000] * 10000) | join(',') }}",
    "{{ ('b' * 10000).join('a' * 10000) }}",
    "{{ [[1]] | tojson(indent=1000000000) }}",
    "{{ 'a' | indent(1000000000) }}",
    "{{ ('\n' * 100000) | indent('x' * 100000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ 1.5 | round(1000000000, 'floor') }}",
    "{{ [[1]] | sum(start=[]) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ lipsum(n=1000000000) }}",
    "{{ range(1000000000) | list }}",
    "{{ strftime_now('%1000000000d') }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=9) %}{% for i in range(100) %}{% set n.x = n.x * n.x %}{% endfor %}",
    DOUBLED + "{{ n.x }}",
    DOUBLED + "{{ n.x | tojson }}",
    DOUBLED + "{{ n.x | string }}",
    DOUBLED.replace("[", "(").replace("]", ",)") + "{% set z = {n.x: 1} %}",
    DOUBLED
    + DOUBLED.replace("n.x", "n.y").replace("namespace(x=[1], y", "namespace(x=n.x, y")
    + "{{ n.x == n.y }}",
    "{% set s = 'x' * 1000000 %}{% set l = [] %}{% for i in range(100000) %}{% do l.append(s[1:]) %}{% endfor %}",
    "{% set l = [1] %}{% for x in l %}{% do l.append(1) %}{% endfor %}",
    "{% set l = [] %}{% do l.append(l) %}{{ l }}",
    "{% set x %}{% for i in range(100000) %}" + "y" * 100000 + "{% endfor %}{% endset %}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "(" * 100000 + " }}",
    "{{ " + "+".join(["1"] * 9000) + " }}",
    "x" * (MAX_SOURCE + 1),
]


def run(source: str, given: Any = None, seconds: float = 0.3, **values: Any) -> str:
    values = {"messages": given, **values}
    return ENVIRONMENT.rendered(ENVIRONMENT.compiled(source), values, Budget(values, seconds))


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:40])
def test_a_hostile_template_ends(source: str) -> None:
    """Each ends in an error, at once or when its time is over, and uses hardly any memory."""
    started = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError, OverflowError, RecursionError, jinja2.TemplateError)):
            run(source)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a{% generation %}b{% if true %}c{% endif %}{% endgeneration %}d", "abcd"),
        ("{% set l = [] %}{% set _ = l.append(2) %}{% do l.append(3) %}{{ l }}{{ l.pop() }}", "[2, 3]3"),
        ("{{ {'a': {'b': 1}} | tojson }}{{ [1] | tojson(indent=2) }}", '{"a": {"b": 1}}[\n  1\n]'),
        ("{{ '<a>' | safe + '<b>' }}{{ '<ü>' | tojson }}", '<a><b>"<ü>"'),
        ("{{ {'a': 1, 'clear': 2}.clear }}{{ {'a': 1}.get('a') }}", "21"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}", "a1True"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}",
            "x, y",
        ),
        ("{{ messages[::-1][0].content }}{{ messages[0]['content'] ~ messages | length }}", "yx2"),
        ("{{ '%s and %5.1f' % ('a', 2) }}{{ '{} {:>3}'.format('b', 4) }}", "a and   2.0b   4"),
        (
            "{% macro m(x) %}<{{ x }}>{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(2) %}!{% endcall %}",
            "<1><2>!",
        ),
        ("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}", "12"),
        ("{{ ['b', 'a'] | sort | first }}{{ {'b': 1, 'a': 2} | dictsort }}", "a[('a', 2), ('b', 1)]"),
        ("{{ none }}{{ undefined_name }}{{ 1 if false }}{{ namespace(a=3).a }}", "None3"),
    ],
)
def test_what_chat_templates_do(source: str, text: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]
    assert run(source, messages, seconds=10) == text


def test_what_is_given_cannot_be_changed() -> None:
    for source in ("{{ messages.append(1) }}", "{{ messages[0].update({}) }}", "{{ messages[0].l.pop() }}"):
        with pytest.raises(jinja2.TemplateError, match="changes what it is given"):
            run(source, [{"l": [1]}])


def test_a_long_conversation_has_room() -> None:
    messages = [{"role": "user", "content": "word " * 2000}] * 2000
    source = "{% set n = namespace(t='') %}{% for m in messages %}{{ m.role + m.content | trim }}{% endfor %}"
    assert len(run(source, messages, seconds=20)) == 2000 * (4 + 9999)


def test_nobody_waits() -> None:
    template, asked = ENVIRONMENT.compiled("{% for i in range(100) %}{{ i }}{% endfor %}"), iter(range(100))
    with pytest.raises(Stopped):
        ENVIRONMENT.rendered(template, {}, Budget([], stopped=lambda: next(asked) == 9))
    assert next(asked) == 10


def test_nothing_is_made_while_a_template_is_compiled() -> None:
    ENVIRONMENT.compiled("{{ 'a' * 3000000000 }}{{ 'a' | indent(1000000000) }}{{ '%1000000000d' % 1 }}")
    with pytest.raises(TooMuch):
        run("{{ 'a' * 3000000000 }}")
