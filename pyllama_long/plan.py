"""Attention plans: which keys a query reads, as text, as typed data, and in plain words.

    sinks(64)+window(4096)
    prefill: sinks(4)+window(508) | tail: exact; dense_below=512, dense_layers=2

A plan has two phases, `prefill` (the bulk of a prompt) and `tail` (the last turn's tokens and the answer); text
without phases applies to both, but if it has `verified`, the prefill is exact. phase.py describes the parts.
Options: queries at positions below `dense_below` and layers below `dense_layers` read every key. With `check=n`,
every n-th query, n = 16, 32 or 64, also reads every key: that measures what the plan leaves out. With `error=x`,
topk takes as many blocks as it needs for a relative error of at most x there. `delta=n` checks too, and adds what
the plan left out of a query to those after it in the prefill (Delta Attention, arXiv 2505.11254).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyllama_long import notation
from pyllama_long.notation import ALL
from pyllama_long.phase import MAX_BRANCHES, PAGE, PART_NAMES, PARTS, Branch, Phase
from pyllama_long.plan_error import PlanError

__all__ = ["ALL", "MAX_BRANCHES", "PRESETS", "AttentionPlan", "Branch", "Phase", "PlanError", "choose_plan"]

PRESETS = {
    "auto": "exact",
    "exact": "exact",
    "streaming": "sinks(4)+window(2048)",
    "longformer": "global(64)+window(4096)",
    "longnet": "dilated()",
    "skim": "prefill: sinks(64)+window(4096) | tail: exact",
    "hyper": "sinks(64)+window(1024)+lsh(3%)+sample(1%); dense_below=4096, dense_layers=2",
    "adaptive": "prefill: sinks(64)+window(1024)+topk(3%) | tail: exact; "
    "dense_below=8192, dense_layers=2, error=0.1",
}

CHECKS = (16, 32, 64)
_OPTIONS = ("dense_below", "dense_layers", "check", "delta", "error")
_CHECK_OF_ERROR = 16  # of 64 queries that choose together, four are measured then


@dataclass(frozen=True)
class AttentionPlan:
    """Which keys each query reads, per phase; layers below `dense_layers` read every key.

    Every `check`-th or `delta`-th query (0: none) also reads every key. That measures the plan's error, and with
    `delta` corrects the queries after it. In the prefill, topk takes more blocks until these queries have at most this
    relative `error` (0: as many as it says).

    `str(plan)` gives text that `parse` reads back as an equal plan.
    """

    prefill: Phase
    tail: Phase
    dense_layers: int = 0
    check: int = 0
    delta: int = 0
    error: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dense_layers <= ALL:
            raise PlanError(f"dense_layers {self.dense_layers} is not from 0 to {ALL}")
        for name, n in (("check", self.check), ("delta", self.delta)):
            if n not in (0, *CHECKS):
                raise PlanError(f"{name}={n} is not one of {', '.join(map(str, CHECKS))}")
        if self.check and self.delta:
            raise PlanError("delta= checks the plan too: leave check= out")
        if not 0 <= self.error < 1:
            raise PlanError(f"error={notation.show(self.error)} is not from 0 to 1")
        if self.error and not (self.checked and self.prefill.topk):
            raise PlanError("error= holds by the blocks that topk takes in the prefill: give it topk(...)")
        if self.prefill.verified:
            raise PlanError(
                "verified is for single queries: give it to the tail, as prefill: exact | tail: ..."
            )
        if self.prefill.dense_below != self.tail.dense_below:
            raise PlanError("dense_below belongs to the whole plan: give both phases the same")

    @property
    def reach(self) -> int:
        """How many tokens back a query reads at most, including itself; ALL if that is unlimited."""
        return ALL if self.dense_layers or self.checked else max(self.prefill.reach, self.tail.reach)

    @property
    def checked(self) -> int:
        """Every how many positions a query also reads every key; 0: none does."""
        return self.check or self.delta

    @property
    def page(self) -> int:
        """A prompt must be cut, and its beginning reused, at multiples of this many positions, so that the result does
        not depend on the cuts: queries of a page choose keys together, and are corrected together."""
        return PAGE if self.prefill.chooses or self.tail.indexed or self.checked else 1

    @classmethod
    def parse(cls, text: str, *, n_train: int | None = None) -> AttentionPlan:
        """Reads a plan or the name of a preset.

        n_train: the model's trained length in tokens; it sizes the window of `skim`.
        Raises PlanError with one line that names the piece that is wrong and the known ones.
        """
        body, semicolon, rest = (piece.strip() for piece in text.partition(";"))
        preset = PRESETS.get(body, "").partition(";")
        values = dict.fromkeys(_OPTIONS, 0.0)
        if preset[1]:
            body, values = preset[0].strip(), values | _options(preset[2])
        if semicolon:
            values |= _options(rest)
        counts = {name: int(value) for name, value in values.items()}
        error, delta = values["error"], counts["delta"]
        prefill, tail = (
            replace(phase, dense_below=counts["dense_below"]) for phase in _phases(body, n_train)
        )
        check = counts["check"] or (_CHECK_OF_ERROR if error and not delta else 0)
        return cls(prefill, tail, counts["dense_layers"], check, delta, error)

    @classmethod
    def default(cls, n_train: int | None, preset: str = "auto") -> AttentionPlan:
        """The plan that a preset stands for with a model trained at n_train tokens."""
        if preset not in PRESETS:
            raise PlanError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        return cls.parse(preset, n_train=n_train)

    def __str__(self) -> str:
        same = self.prefill == self.tail
        body = str(self.prefill) if same else f"prefill: {self.prefill} | tail: {self.tail}"
        options = [("dense_below", self.prefill.dense_below), ("dense_layers", self.dense_layers)]
        options += [("check", self.check), ("delta", self.delta)]
        shown = ", ".join(f"{name}={notation.show(n)}" for name, n in [*options, ("error", self.error)] if n)
        return f"{body}; {shown}" if shown else body

    def explain(self) -> str:
        """A few plain lines."""
        if self.prefill == self.tail:
            lines = [f"every query reads {self.prefill.explain()}"]
        else:
            lines = [f"the prompt reads {self.prefill.explain()}"]
            lines.append(f"the last turn and the answer read {self.tail.explain()}")
        if self.prefill.dense_below:
            lines.append(f"queries before position {self.prefill.dense_below} read every key")
        if self.dense_layers:
            lines.append(f"the first {self.dense_layers} layers read every key")
        if self.checked:
            lines.append(
                f"every {self.checked}th query also reads every key, which measures what the plan leaves out"
            )
        if self.delta:
            lines.append("what it leaves out there is added to the queries of the prompt after it")
        if self.error:
            most = notation.show(self.error)
            lines.append(
                f"in the prompt, more blocks are read until the relative error there is at most {most}"
            )
        return "\n".join(lines)

    def share(self, n: int, n_head: int = 1, n_layer: int | None = None) -> float:
        """The share (0 .. 1) of the causal (query, key) pairs that a prefill of n tokens reads, averaged over heads 0
        .. n_head; a key that several branches read counts once, but those
        of checks are counted again. The value is exact. Without n_layer it is that of a
        layer outside the dense layers; with it, it is averaged over the layers too."""
        from pyllama_long import pattern

        if n < 1 or n_head < 1 or (n_layer is not None and n_layer < 1):
            raise PlanError("share needs at least one token, head and layer")
        sparse = pattern.share(self.prefill, n, n_head)
        if self.checked:
            sparse += pattern.checked(self.prefill, n, self.checked)
        if n_layer is None:
            return sparse
        dense = min(self.dense_layers, n_layer)
        return (dense + (n_layer - dense) * sparse) / n_layer


def choose_plan(
    text: str, n_train: int, gguf_keys: tuple[Sequence[int], Sequence[int]] | None
) -> tuple[AttentionPlan, str]:
    """The plan for a model, and one line that says why it was chosen.

    gguf_keys: the GGUF's `{arch}.attention.dilated.segment_lengths` and `{arch}.attention.dilated.rates`, or
    None. `auto` (with or without options) chooses the plan that the model was trained with, else `exact`, or `adaptive`
    if an error is allowed.
    """
    name, semicolon, options = text.strip().partition(";")
    if name.strip() != "auto":
        return AttentionPlan.parse(text, n_train=n_train), "asked for"
    if gguf_keys is None and "error" in (_options(options) if semicolon else {}):
        return AttentionPlan.parse(f"adaptive;{options}"), "auto: as many blocks as the error asks for"
    if gguf_keys is None:
        return AttentionPlan.parse(text, n_train=n_train), "auto: the model was trained to read every key"
    segments, rates = ("/".join(str(int(n)) for n in keys) for keys in gguf_keys)
    try:
        plan = AttentionPlan.parse(f"dilated(segments={segments}, rates={rates}){semicolon}{options}")
    except PlanError as error:
        raise PlanError(f"the GGUF's attention.dilated keys do not make a plan: {error}") from error
    return plan, "auto: the GGUF says that the model was trained with this dilated attention"


def _options(text: str) -> dict[str, float]:
    """The options that a text gives: `dense_below=512, error=0.1`."""
    found: dict[str, float] = {}
    for option in text.replace(";", ",").split(","):
        key, _, value = (s.strip() for s in option.partition("="))
        if key not in _OPTIONS:
            raise PlanError(f"unknown option {key!r}; known: {', '.join(f'{o}=n' for o in _OPTIONS)}")
        if key in found:
            raise PlanError(f"option {key} is given twice")
        if key == "error":
            found[key] = notation.number(value, key, PlanError)
        else:
            found[key] = notation.integer(value, key, PlanError, low=0)
    return found


def _phases(body: str, n_train: int | None) -> tuple[Phase, Phase]:
    if n_train is not None and n_train < 1:
        raise PlanError(f"n_train {n_train} is not a trained length")
    if body == "skim" and n_train is not None and n_train < 8192:
        body = f"prefill: sinks(4)+window({max(1, n_train - 4)}) | tail: exact"
    body = PRESETS.get(body, body)
    found: dict[str, Phase] = {}
    pieces = body.split("|")
    for piece in pieces:
        name, colon, parts = (s.strip() for s in piece.rpartition(":"))
        if (colon and name not in ("prefill", "tail")) or (not colon and len(pieces) > 1):
            raise PlanError(f"unknown phase {name or parts!r}; write prefill: ... | tail: ...")
        if name in found:
            raise PlanError(f"phase {name} is given twice")
        found[name] = _phase(parts)
    first = next(iter(found.values()))
    if "prefill" not in found and first.verified:  # which is for single queries
        return Phase(window=ALL), first
    return found.get("prefill", first), found.get("tail", first)


def _phase(text: str) -> Phase:
    if {"|", ";"} & set(PRESETS.get(text, "")):  # it has options, which belong to the whole
        raise PlanError(f"{text} is a plan of both phases: write it alone")
    if text.isidentifier() and text not in PRESETS and text not in PART_NAMES:
        raise PlanError(f"unknown part {text!r}; known: {PARTS}; presets: {', '.join(PRESETS)}")
    return Phase.parse(PRESETS.get(text, text))
