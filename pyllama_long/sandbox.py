"""Jinja for untrusted templates: the template in a model's file runs within bounds of time, size and depth.

jinja2's sandbox keeps a template away from Python's internals. This one also allows only the filters, tests and
methods that chat templates need, and checks the size of what each of them makes before or while it is made.
"""

from __future__ import annotations

import html
import json
import re
import string
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, do, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

MAX_SOURCE = 1 << 18  # characters; the longest template of a model so far has 17,000
SECONDS = 10.0  # seconds of rendering

_MIN_SIZE = 1 << 22  # characters of all values together, besides a multiple of the input
_GROWTH = 64
_MAX_WIDTH = 1000  # padding of one value, or digits of a number
_BITS = 4096  # of an integer

_FILTERS = (
    "abs batch capitalize count d default dictsort escape e first float groupby indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round select selectattr slice sort string sum title trim "
    "truncate unique upper wordcount"
).split()
_COUNTED = {
    "batch",
    "slice",
    "indent",
    "truncate",
    "round",
}  # filters with a number of items or characters as argument
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    list: frozenset("append copy count extend index insert pop".split()),
    tuple: frozenset(("count", "index")),
    dict: frozenset("copy get items keys pop setdefault update values".split()),
}
_CHANGES = {"append", "extend", "insert", "pop", "setdefault", "update"}
_PLAIN = (bool, int, float, type(None), Undefined)
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_DATA = (list, tuple, dict, range, *_VIEWS)
_PADDED = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


class TooMuch(jinja2.TemplateRuntimeError):
    """A template exceeded its bounds."""


class Stopped(Exception):
    """Nobody is waiting for the text any more."""


class Budget:
    """What one rendering may still use. given: its input values; stopped: whether nobody waits for it any more."""

    def __init__(
        self, given: Any, seconds: float = SECONDS, stopped: Callable[[], bool] | None = None
    ) -> None:
        self._given: dict[int, tuple[Any, int]] = {}
        self._made: dict[int, tuple[Any, int]] = {}
        self._end, self._seconds, self._stopped = time.monotonic() + seconds, seconds, stopped
        self.left = 1 << 62
        self.left = self._most = _MIN_SIZE + _GROWTH * self.weigh(given)
        self._given, self._made = self._made, {}

    def tick(self, size: int = 0) -> None:
        """Called before each step of a loop, call, filter and operator; size: characters that it writes."""
        self.left -= size
        if self.left < 0:
            self._too_large()
        if time.monotonic() > self._end:
            raise TooMuch(f"it takes longer than {self._seconds:g} s")
        if self._stopped is not None and self._stopped():
            raise Stopped

    def room(self, size: int) -> None:
        """Raises TooMuch unless something of that size can be made."""
        if size > self.left:
            self._too_large()

    def weigh(self, value: Any) -> int:
        """The size of a value in characters; an item counts as several, and a shared one as often as it would be
        written."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, _PLAIN) or not isinstance(value, _DATA):
            return 8
        if isinstance(value, range):
            return 8 * len(value)
        known = self._given.get(id(value)) or self._made.get(id(value))
        if known is not None:
            return known[1]
        size, items = 8, value
        if isinstance(value, dict):
            size, items = size + sum(self._inside(key) for key in value), value.values()
        for item in items:
            size += self._inside(item)
            if size > self.left:
                self._too_large()
        self._made[id(value)] = value, size  # kept alive, so that no other value gets its id
        return size

    def _inside(self, value: Any) -> int:
        if not isinstance(value, (str, *_PLAIN, *_DATA)):
            raise TooMuch(f"it puts a {type(value).__name__} into a list")
        return 8 + self.weigh(value)

    def change(self, value: Any) -> None:
        """Called before a list or an object is changed."""
        if id(value) in self._given:
            raise SecurityError("it changes what it is given")
        self._made.clear()

    def _too_large(self) -> NoReturn:
        raise TooMuch(f"it makes more than {self._most:,} characters of this conversation")


_BUDGET: ContextVar[Budget] = ContextVar("budget")


class Environment(SandboxedEnvironment):
    """The function that Hugging Face's and llama.cpp's templates expect."""

    intercepted_binops = frozenset("+ - * / // % **".split())

    def __init__(self) -> None:
        extensions: list[type[Extension]] = [loopcontrols, do, _Generation]
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            loader=None,
            optimized=False,
            finalize=_written,
        )
        filters: Any = FILTERS
        self.filters = {name: _bounded(name, filters[name]) for name in _FILTERS}
        self.filters |= {"tojson": _bounded("tojson", to_json), "safe": _bounded("safe", _safe)}
        self.filters |= {"escape": _bounded("escape", _escaped), "e": _bounded("escape", _escaped)}
        self.filters |= {"weighed": _weighed, "made": _made, "concat": _bounded("concat", _concat)}
        tests: Any = TESTS
        self.tests = {name: _bounded("test", test) for name, test in tests.items()}
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "namespace": Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise,
            "strftime_now": _now,
            "_step": _step,
        }
        self._functions = frozenset(self.globals.values())

    def compiled(self, source: str) -> jinja2.Template:
        """Raises ValueError, in one line, for a text that is not a template."""
        if len(source) > MAX_SOURCE:
            raise ValueError(f"it has {len(source):,} characters, more than {MAX_SOURCE:,}")
        try:
            return self.from_string(source)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except jinja2.TemplateError as error:
            raise ValueError(_line(error)) from None
        except Exception as error:  # errors of Python's compiler, which has bounds of its own
            raise ValueError(f"it cannot be compiled: {_line(error)}") from None

    def rendered(self, template: jinja2.Template, values: Mapping[str, Any], budget: Budget) -> str:
        """Raises jinja2's errors and any other error that a template causes."""
        before = _BUDGET.set(budget)
        try:
            return template.render(values)
        finally:
            _BUDGET.reset(before)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Guards(self).visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        if allowed is not None:
            return attr in allowed
        return isinstance(obj, (Namespace, LoopContext, Cycler, Joiner, Macro)) and not attr.startswith("_")

    def getattr(self, obj: Any, attribute: str) -> Any:
        # The name of a method that templates do not need can be a key.
        if isinstance(obj, dict) and attribute in obj and attribute not in _METHODS[dict]:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget, self = _BUDGET.get(), __self
        budget.tick()
        size = sum(map(budget.weigh, args)) + sum(map(budget.weigh, kwargs.values()))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, tuple(_METHODS)) and not isinstance(__obj, type):
            kwargs = {key: kwargs[key] for key in kwargs if key not in ("_loop_vars", "_block_vars")}
            result = self._method(budget, owner, __obj, size, args, kwargs)
        elif (
            isinstance(__obj, (Macro, LoopContext, Joiner))
            or isinstance(owner, (LoopContext, Cycler))
            or (__obj.__hash__ is not None and __obj in self._functions)
        ):
            result = __context.call(__obj, *args, **kwargs)
        else:
            raise SecurityError(f"{type(__obj).__name__} cannot be called")
        if not isinstance(result, range):
            budget.tick(budget.weigh(result))
        return result

    def wrap_str_format(self, value: Any) -> None:
        """`call` formats texts itself."""

    def _method(
        self,
        budget: Budget,
        owner: Any,
        method: Any,
        size: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name = method.__name__
        if not self.is_safe_attribute(owner, name, method):
            raise SecurityError(f"{name} cannot be called")
        if name in _CHANGES and isinstance(owner, (list, dict)):
            budget.change(owner)
        elif isinstance(owner, str):
            if name == "format":
                budget.room(len(owner) + owner.count("{") * size)
                return _Formatter(self).vformat(owner, args, kwargs)
            if name == "replace" and len(args) > 1:
                budget.room(_replaced(owner, args))
            elif name == "join" and args:
                args = (_listed(args[0]), *args[1:])
                budget.room(_joined(budget, owner, args[0]))
        else:
            budget.weigh(owner)
        result = method(*args, **kwargs)
        if isinstance(result, _VIEWS):
            return [*iter(result)]
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.tick()
        if operator == "+":
            budget.room(budget.weigh(left) + budget.weigh(right))
        elif operator == "*":
            _check_product(budget, left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and abs(left).bit_length() * right > _BITS:
                raise TooMuch(f"it makes an integer of more than {_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            if any(
                part == "*" or int(part or 0) > _MAX_WIDTH
                for found in _PADDED.findall(left)
                for part in found
            ):
                raise TooMuch(f"it pads to more than {_MAX_WIDTH:,} characters")
            budget.room(len(left) + left.count("%") * (budget.weigh(right) + 2 * _MAX_WIDTH))
        result = super().call_binop(context, operator, left, right)
        if not isinstance(result, (int, float)):
            budget.tick(budget.weigh(result))
        return result


class _Guards:
    """Inserts the counting calls into a template's tree."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node) -> None:
        for child in node.iter_child_nodes():
            self.visit(child)
        if isinstance(node, nodes.For):
            size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            call = nodes.Call(nodes.Name("_step", "load"), [nodes.Const(size)], [], None, None)
            node.body.insert(0, self._placed(nodes.ExprStmt(call), node))
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.key = self._filtered("weighed", pair.key)  # its hash covers everything in it
        elif isinstance(node, nodes.Getitem) and not isinstance(node.arg, (nodes.Slice, nodes.Const)):
            node.arg = self._filtered("weighed", node.arg)
        elif isinstance(node, nodes.Compare):
            node.expr = self._filtered("weighed", node.expr)
            for operand in node.ops:
                operand.expr = self._filtered("weighed", operand.expr)
        for name, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, name, [self._guarded(item) for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, self._guarded(value))

    def _guarded(self, node: Any) -> Any:
        if isinstance(node, nodes.Concat):
            return self._filtered("concat", self._placed(nodes.List(node.nodes), node))
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._filtered("made", node)
        return node

    def _filtered(self, name: str, node: nodes.Expr) -> nodes.Expr:
        found: nodes.Expr = self._placed(nodes.Filter(node, name, [], [], None, None), node)
        return found

    def _placed(self, node: Any, like: nodes.Node) -> Any:
        return node.set_environment(self._environment).set_lineno(like.lineno)


class _Generation(Extension):
    """{% generation %} marks what a model is trained to write; it has no effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return found


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if any(int(number) > _MAX_WIDTH for number in re.findall(r"\d{1,19}", format_spec)):
            raise TooMuch(f"it pads to more than {_MAX_WIDTH:,} characters")
        return string.Formatter.format_field(self, value, format_spec)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that counts the size of its input and output."""
    n_own = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.tick()
        taken = [_listed(value) for value in args[n_own:]]
        named = {key: _listed(value) for key, value in kwargs.items()}
        for value in (*taken, *named.values()):
            budget.weigh(value)
            if (
                name in _COUNTED
                and isinstance(value, int)
                and abs(value) > _MAX_WIDTH
                and value is not taken[0]
            ):
                raise TooMuch(f"{name} is given {value:,}, more than {_MAX_WIDTH:,}")
        _check_filter(name, budget, taken, named)
        result = function(*args[:n_own], *taken, **named)
        if isinstance(result, Iterator):
            items = list(result)
            budget.tick(budget.weigh(items))
            return iter(items)
        if not isinstance(result, _PLAIN):
            budget.tick(budget.weigh(result))
        return result

    return run


def _check_filter(name: str, budget: Budget, taken: list[Any], named: dict[str, Any]) -> None:
    """Raises TooMuch before a filter makes much more than it was given."""
    value = taken[0] if taken else ""
    if name == "replace" and len(taken) > 2:
        budget.room(_replaced(str(value), [str(part) for part in taken[1:3]]))
    elif name == "join":
        given = taken[1] if len(taken) > 1 else named.get("d", "")
        budget.room(_joined(budget, str(given), value))
    elif name == "indent":
        width = taken[1] if len(taken) > 1 else named.get("width", 4)
        width = len(width) if isinstance(width, str) else width
        budget.room(len(str(value)) + (str(value).count("\n") + 1) * int(width))
    if name == "sum" and not isinstance(named.get("start", taken[2] if len(taken) > 2 else 0), (int, float)):
        raise TooMuch("it adds up what are no numbers")


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, list, tuple)) and isinstance(times, int):
            budget.room(budget.weigh(many) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _BITS:
        raise TooMuch(f"it makes an integer of more than {_BITS} bits")


def _items(value: Any) -> Any:
    return value if isinstance(value, (*_DATA, str)) else ()


def _replaced(text: str, args: Any) -> int:
    old, new = args[0], args[1]
    return len(text) + text.count(old) * len(new) if isinstance(old, str) and isinstance(new, str) else 0


def _joined(budget: Budget, separator: str, items: Any) -> int:
    return budget.weigh(items) + len(separator) * len(_items(items))


def _listed(value: Any) -> Any:
    """The items of an iterator as a list, so that their size can be counted."""
    return list(value) if isinstance(value, Iterator) else value


def _weighed(value: Any) -> Any:
    if not isinstance(value, str):
        _BUDGET.get().weigh(value)
    return value


def _made(value: Any) -> Any:
    budget = _BUDGET.get()
    budget.tick(budget.weigh(value))
    return value


def _concat(parts: list[Any]) -> str:
    return "".join("" if isinstance(part, Undefined) else str(part) for part in parts)


@pass_context  # so that nothing is evaluated while a template is compiled
def _written(_: Any, value: Any) -> Any:
    if not isinstance(value, (str, *_PLAIN, *_DATA)):
        raise TooMuch(f"it writes a {type(value).__name__}")
    return _made(value)


def _step(size: int) -> None:
    _BUDGET.get().tick(size)


def _safe(value: Any) -> str:
    return str(value)


def _escaped(value: Any) -> str:
    return html.escape(str(value))


def _raise(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    if len(form) > _MAX_WIDTH or re.search(r"%[^a-zA-Z%]*\d", form):
        raise TooMuch("it pads a date")
    return datetime.now().strftime(form)


def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter as in Hugging Face; jinja2's own writes < as \\u003c for HTML."""
    if isinstance(indent, str) or (indent is not None and indent > 64):
        raise TooMuch("tojson is given an indent of more than 64")
    separators = options.get("separators")
    if separators is not None and sum(map(len, separators)) > 64:
        raise TooMuch("tojson is given separators of more than 64 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=bool(options.get("sort_keys", False)),
        default=_no_json,
    )
    if indent is None:
        return encoder.encode(value)
    budget = _BUDGET.get()
    written: list[str] = []
    for chunk in encoder.iterencode(value):
        budget.room(len(chunk))
        budget.left -= len(chunk)
        written.append(chunk)
    return "".join(written)


def _no_json(value: Any) -> Any:
    if isinstance(value, _VIEWS):
        return [*iter(value)]
    raise TypeError(f"{type(value).__name__} is not of JSON")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]
