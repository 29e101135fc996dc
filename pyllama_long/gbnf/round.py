"""Examines a grammar that has been cut into lexemes: which of them take bytes that belong to the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeAlias

from pyllama_long.gbnf.automaton import MARK, Automaton, Budget, Meeting, TooLarge, build, meet
from pyllama_long.gbnf.tree import Alt, Node, Ref, Repeat, Token

Machines: TypeAlias = dict[Node, Automaton | None]  # None: too large to be made

_MAX_LEXEMES = 4000
_MEETING = 5  # cost of comparing two lexemes, in stored pairs

_TOKENS = Meeting(0, 0, True)  # the text of tokens, which end by themselves


class Cutting(Protocol):
    """A grammar, of which some parts are lexemes."""

    @property
    def rules(self) -> Mapping[str, Node]: ...

    def is_lexeme(self, node: Node) -> bool: ...

    def parts(self, node: Node) -> tuple[Node, ...]: ...


class Round:
    """Lexemes are numbered, and sets of them are the bits of integers.

    What may follow a lexeme is collected over all places where its rule is used."""

    def __init__(self, cut: Cutting, machines: Machines, budget: Budget) -> None:
        """machines, budget: shared by all rounds."""
        self._cut, self._machines, self._budget = cut, machines, budget
        self._lexemes: list[Node] = []
        self._index: dict[Node, int] = {}
        self._begins: dict[
            str, tuple[int, bool]
        ] = {}  # by rule: its first lexemes, and whether it may be empty
        self._after: dict[str, int] = {}  # by rule
        self._next: list[int] = []  # by lexeme
        self._meetings: dict[tuple[Node, Node], Meeting] = {}

    def conflicts(self) -> set[Node]:
        """The lexemes that must be split. Raises TooLarge."""
        self._collect()
        if self._cut.is_lexeme(self._cut.rules["root"]):
            return set()  # it is alone
        texts = [node for node in self._lexemes if not isinstance(node, Token)]
        large = {node for node in texts if self._machine(node) is None}
        if large:
            return large
        self._solve()
        return self._greedy()

    def _collect(self) -> None:
        names, self._begins["root"] = ["root"], (0, False)
        for name in names:
            stack = [self._cut.rules[name]]
            while stack:
                node = stack.pop()
                if self._is_leaf(node):
                    if node not in self._index:
                        self._index[node] = len(self._lexemes)
                        self._lexemes.append(node)
                elif isinstance(node, Ref):
                    if node.name not in self._begins:
                        self._begins[node.name] = (0, False)
                        names.append(node.name)
                else:
                    stack += reversed(self._cut.parts(node))
        if len(self._lexemes) > _MAX_LEXEMES:
            raise TooLarge
        self._after = dict.fromkeys(self._begins, 0)
        self._next = [0] * len(self._lexemes)

    def _is_leaf(self, node: Node) -> bool:
        return isinstance(node, Token) or self._cut.is_lexeme(node)

    def _machine(self, node: Node) -> Automaton | None:
        if isinstance(node, Ref):
            node = self._cut.rules[node.name]
        if node not in self._machines:
            try:
                self._machines[node] = None if isinstance(node, Token) else build(node, self._cut.rules)
            except TooLarge:
                self._machines[node] = None
        return self._machines[node]

    # ---- what follows what -------------------------------------------------------------------------------

    def _solve(self) -> None:
        changed = True
        while changed:
            changed = False
            for name in reversed(self._begins):
                new = self._begin(self._cut.rules[name])
                changed |= new != self._begins[name]
                self._begins[name] = new
        changed = True
        while changed:
            before = dict(self._after)
            for name in self._begins:
                self._pass(self._cut.rules[name], self._after[name])
            changed = before != self._after

    def _begin(self, node: Node) -> tuple[int, bool]:
        if self._is_leaf(node):
            machine = self._machine(node)
            return 1 << self._index[node], machine is not None and machine.nullable
        match node:
            case Ref(name):
                return self._begins[name]
            case Repeat(item, low, _):
                first, empty = self._begin(item)
                return first, empty or low == 0
            case Alt():
                first, empty = 0, False
                for item in node.items:
                    begin, nothing = self._begin(item)
                    first, empty = first | begin, empty or nothing
                return first, empty
        first = 0
        for item in self._cut.parts(node):
            begin, empty = self._begin(item)
            first |= begin
            if not empty:
                return first, False
        return first, True

    def _pass(self, node: Node, after: int) -> None:
        """Notes what may follow the parts of a node, when `after` may follow the node."""
        if self._is_leaf(node):
            self._next[self._index[node]] |= after
            return
        match node:
            case Ref(name):
                self._after[name] |= after
            case Repeat(item, _, high):
                self._pass(item, after if high == 1 else after | self._begin(item)[0])
            case Alt(items):
                for item in items:
                    self._pass(item, after)
            case _:
                for item in reversed(self._cut.parts(node)):
                    self._pass(item, after)
                    begin, empty = self._begin(item)
                    after = after | begin if empty else begin

    # ---- what competes with what -------------------------------------------------------------------------

    def _greedy(self) -> set[Node]:
        """The lexemes that continue where a competing one may end, with a byte that may follow that one."""
        machines = [self._machine(node) for node in self._lexemes]
        begin = [machine.first_bytes if machine else MARK for machine in machines]
        by_byte = [0] * 256
        for i, mask in enumerate(begin):
            for byte in _bits(mask):
                by_byte[byte] |= 1 << i
        like = [0] * len(begin)  # those that begin with the same bytes
        for i, mask in enumerate(begin):
            for byte in _bits(mask):
                like[i] |= by_byte[byte]
        then = [0] * len(begin)  # bytes that may come next
        for i, following in enumerate(self._next):
            for j in _bits(following):
                then[i] |= begin[j]

        beside = [0] * len(begin)
        todo: list[tuple[int, int]] = []

        def join(left: int, right: int) -> None:
            for i in _bits(left):
                new = right & like[i] & ~beside[i]
                beside[i] |= new
                self._budget.spend(1 + new.bit_count())
                for j in _bits(new):
                    beside[j] |= 1 << i
                    todo.append((i, j))

        root = self._begins["root"][0]
        join(root, root)
        found = set()
        while todo:
            i, j = todo.pop()
            meeting = self._meet(i, j)
            if meeting.a_then & then[i]:
                found.add(self._lexemes[j])
            if meeting.b_then & then[j]:
                found.add(self._lexemes[i])
            if i == j:
                join(self._next[i], self._next[i])
            elif meeting.both:
                join(self._next[i], self._next[j])
                join(self._next[j], self._next[i])
        return found

    def _meet(self, i: int, j: int) -> Meeting:
        a, b = (self._machine(self._lexemes[k]) for k in (i, j))
        if a is None or b is None:
            return _TOKENS
        key = (self._lexemes[i], self._lexemes[j])
        if key not in self._meetings:
            self._budget.spend(_MEETING)
            self._meetings[key] = meet(a, b)
        return self._meetings[key]


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
