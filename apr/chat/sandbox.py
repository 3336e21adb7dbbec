"""The place where a chat template runs: jinja2's immutable sandbox, with an end to its patience.

jinja2 keeps a template from reaching Python; it does not keep it from running for ever, or from
filling the memory. Here every turn of a loop, every call of a macro and every piece of text asks
for the time and the size, and no operation is begun whose result alone would be too large. What
goes beyond is an error as any other of a template's.
"""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 3.0
SIZE = 32_000_000  # characters written, or elements of one value
_BITS = 100_000  # of a whole number
_WIDTH = re.compile(r"\d{6}")  # in a format: a field of 100,000 characters, or more


class TooMuch(SecurityError):
    """A template takes too long, or makes too much."""


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox. `begin` starts the clock of a rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self.written,
        )
        self._end, self._size = float("inf"), 0
        for name, function in list(self.filters.items()):
            self.filters[name] = self._bounded(function)
        self.filters["tojson"] = _tojson
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
            namespace=_namespace,
            # A function, so that no template holds a class of Python.
            dict=lambda *args, **values: dict(*args, **values),  # noqa: PLW0108
        )

    def template(self, source: str) -> Template:
        """A template that asks for the time wherever it may go round."""
        tree = _Watched().visit(self.parse(source))
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def begin(self) -> None:
        """A rendering begins."""
        self._end, self._size = time.monotonic() + SECONDS, 0

    def tick(self) -> str:
        """Nothing, while there is time."""
        if time.monotonic() > self._end:
            raise TooMuch(f"takes longer than {SECONDS:g} seconds")
        return ""

    def written(self, value: Any) -> Any:
        """A value that becomes text; all of them together have a size."""
        text = value if isinstance(value, str) else str(value)
        self._size += len(text)
        if self._size > SIZE:
            raise TooMuch(f"writes more than {SIZE:,} characters")
        self.tick()
        return value

    def joined(self, *parts: Any) -> str:
        """What `~` gives."""
        text = "".join(map(str, parts))
        self._check(len(text))
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of `+`, `*`, `**` or `%`, if it is of a size that can be meant."""
        if operator == "%" and isinstance(left, str):
            if _WIDTH.search(left) or "*" in left:
                raise TooMuch(f"{left[:40]!r} is too wide a format")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._check(len(left) + len(right))
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if hasattr(one, "__len__") and isinstance(other, int):
                    self._check(len(one) * max(0, other))
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length()
            if (bits + right.bit_length() if operator == "*" else bits * max(0, right)) > _BITS:
                raise TooMuch("makes a number of too many digits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call from within the template."""
        __self._check_arguments(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _check(self, size: int) -> None:
        self.tick()
        if size > SIZE:
            raise TooMuch(f"makes a value of {size:,} elements")

    def _check_arguments(self, args: Any, kwargs: Any) -> None:
        self.tick()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > SIZE:
                raise TooMuch(f"{value:,} is too large an argument" if abs(value) < 1e18 else
                              "an argument is too large")  # fmt: skip

    def _bounded(self, function: Any) -> Any:
        """A filter that no width or count is given to that no text can have."""

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._check_arguments(args, kwargs)
            return function(*args, **kwargs)

        return bounded


class _Watched(NodeTransformer):
    """Puts a look at the clock where a template may go round."""

    def _begin(self, node: Any) -> Any:
        self.generic_visit(node)
        line = node.lineno
        call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        statement = nodes.ExprStmt(call)
        statement.set_lineno(line)
        node.body.insert(0, statement)
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _begin  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        """`a ~ b`, of a size that can be meant."""
        self.generic_visit(node)
        name = nodes.EnvironmentAttribute("joined")
        call = nodes.Call(name, node.nodes, [], None, None)
        return call.set_lineno(node.lineno)  # type: ignore[return-value]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; it renders as is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Safe(Namespace):
    """A namespace whose attributes cannot reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **values: Any) -> _Safe:
    made = dict(*args, **values)
    for name in made:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
    return _Safe(made)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
