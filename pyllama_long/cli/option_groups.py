"""Options that belong together: a command gets them as one dataclass, and the user sees one option per field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., int | None]


def flat(command: Command) -> Command:
    """Adapts a command to typer, with a parameter per field of each dataclass that it takes. Fields have `Annotated`
    types that contain the option; a parameter's default, if there is one, gives the fields' defaults."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters = []
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(parameter)
            continue
        given = kind() if parameter.default is parameter.empty else parameter.default
        hints = get_type_hints(kind, include_extras=True)
        names = [field.name for field in fields(kind) if field.init]
        groups[parameter.name] = (kind, names)
        parameters += [
            parameter.replace(name=name, annotation=hints[name], default=getattr(given, name))
            for name in names
        ]

    @wraps(command)
    def taken(**values: Any) -> int | None:
        for group, (kind, names) in groups.items():
            values[group] = kind(**{name: values.pop(name) for name in names})
        return command(**values)

    # typer reads both.
    taken.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    taken.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return taken
