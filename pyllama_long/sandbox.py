"""Jinja for untrusted templates: the template in a model's file runs within bounds of time, size and depth.

jinja2's sandbox keeps a template away from Python's internals. This one also allows only the filters, tests and
methods that chat templates need, and checks the size of what each of them makes before or while it is made.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, do, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from pyllama_long.sandbox_budget import BUDGET, DATA, PLAIN, VIEWS, Budget, TooMuch
from pyllama_long.sandbox_filters import (
    FILTER_NAMES,
    MAX_BITS,
    MAX_WIDTH,
    bounded,
    check_product,
    concat,
    escaped,
    joined,
    listed,
    made,
    replaced,
    safe,
    to_json,
    weighed,
)

MAX_SOURCE = 1 << 18  # characters; the longest template of a model so far has 17,000
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
_PADDED = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


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
            finalize=written,
        )
        filters: Any = FILTERS
        self.filters = {name: bounded(name, filters[name]) for name in FILTER_NAMES}
        self.filters |= {"tojson": bounded("tojson", to_json), "safe": bounded("safe", safe)}
        self.filters |= {"escape": bounded("escape", escaped), "e": bounded("escape", escaped)}
        self.filters |= {"weighed": weighed, "made": made, "concat": bounded("concat", concat)}
        tests: Any = TESTS
        self.tests = {name: bounded("test", test) for name, test in tests.items()}
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
        before = BUDGET.set(budget)
        try:
            return template.render(values)
        finally:
            BUDGET.reset(before)

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
        budget, self = BUDGET.get(), __self
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
                budget.room(replaced(owner, args))
            elif name == "join" and args:
                args = (listed(args[0]), *args[1:])
                budget.room(joined(budget, owner, args[0]))
        else:
            budget.weigh(owner)
        result = method(*args, **kwargs)
        if isinstance(result, VIEWS):
            return [*iter(result)]
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        budget.tick()
        if operator == "+":
            budget.room(budget.weigh(left) + budget.weigh(right))
        elif operator == "*":
            check_product(budget, left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and abs(left).bit_length() * right > MAX_BITS:
                raise TooMuch(f"it makes an integer of more than {MAX_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            if any(
                part == "*" or int(part or 0) > MAX_WIDTH for found in _PADDED.findall(left) for part in found
            ):
                raise TooMuch(f"it pads to more than {MAX_WIDTH:,} characters")
            budget.room(len(left) + left.count("%") * (budget.weigh(right) + 2 * MAX_WIDTH))
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
        if any(int(number) > MAX_WIDTH for number in re.findall(r"\d{1,19}", format_spec)):
            raise TooMuch(f"it pads to more than {MAX_WIDTH:,} characters")
        return string.Formatter.format_field(self, value, format_spec)


@pass_context  # so that nothing is evaluated while a template is compiled
def written(_: Any, value: Any) -> Any:
    if not isinstance(value, (str, *PLAIN, *DATA)):
        raise TooMuch(f"it writes a {type(value).__name__}")
    return made(value)


def _step(size: int) -> None:
    BUDGET.get().tick(size)


def _raise(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    if len(form) > MAX_WIDTH or re.search(r"%[^a-zA-Z%]*\d", form):
        raise TooMuch("it pads a date")
    return datetime.now().strftime(form)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]
