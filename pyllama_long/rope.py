"""RoPE policies: how positions beyond the trained length are given to a model that never saw them.

A policy is one frequency rule, one position map, or both, written `dca+yarn(4)+logn`. With trained length L,
n_rot = d, base b, theta_i = b^(-2i/d), s = n_ctx / L unless given:

    native                  the model's own rotation
    linear(s)               theta / s (position interpolation, arXiv 2306.15595)
    ntk(s)                  base b * s^(d/(d-2))
    yarn(s)                 arXiv 2309.00071: a ramp from theta to theta / s, cos and sin times 0.1 ln s + 1
    llama3(s)               Llama 3.1's wavelength bands
    longrope(s)             arXiv 2402.13753: a factor per dimension, cos and sin times sqrt(1 + ln s / ln L)
    dynamic-ntk             ntk(s) and yarn(s) whose s follows the length that each text needs, in powers of two;
    dynamic-yarn            within L nothing is scaled
    dca(chunk, local)       Dual Chunk Attention, arXiv 2402.17463; 3L/4 and L/8
    self-extend(group, window)   arXiv 2401.01325; ceil(2 n_ctx / L) and L/4
    rerope(window)          distance min(p - t, window); L/2
    +logn                   q times max(1, ln(p+1) / ln L)
    auto                    native up to L, dynamic-yarn up to 4 L, rerope(L/2)+logn beyond
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pyllama_long import notation

__all__ = ["WITHOUT_ROPE", "RopeError", "RopePolicy", "Takes", "choose_rope"]

Freq = Literal["native", "linear", "ntk", "yarn", "llama3", "longrope"]
Map = Literal["absolute", "dca", "self-extend", "rerope"]

MAX_FACTORS = 256
_MIN, _MAX = 1e-30, 1e30  # bounds of a policy's numbers, which C keeps in float32
WITHOUT_ROPE = "auto: the model has no RoPE, and what it has (ALiBi) extrapolates as it is"

_FREQS = get_args(Freq)
_MAPS = get_args(Map)[1:]
_DYNAMIC = {"dynamic-ntk": "ntk", "dynamic-yarn": "yarn"}
_KNOWN = ", ".join((*_FREQS, *_DYNAMIC, *_MAPS, "logn", "auto"))
_REACH = 4  # times the trained length: how far YaRN works well without training
# Fields that belong to one frequency rule, and the values of each map by position.
_OWN = {"yarn": ("beta_fast", "beta_slow"), "llama3": ("low_freq", "high_freq"), "longrope": ("factors",)}
_VALUES: Mapping[str, tuple[str, ...]] = {
    "absolute": (),
    "dca": ("chunk", "local"),
    "self-extend": ("group", "window"),
    "rerope": ("window",),
}


class RopeError(ValueError):
    """A RoPE policy that cannot be read or used; the message says what to change."""


@dataclass(frozen=True)
class RopePolicy:
    """One frequency rule and one position map.

    factor: s >= 1. dynamic: each text has its own s (`factor_for`), which begins with 1. n_train: L in tokens, 0 when
    unknown. factors: LongRoPE's divisors [n_rot / 2]; empty: those of the model's file. chunk, local: DCA's chunk
    (keys sit at t mod (chunk - local)) and local window; Self-Extend's group and window; ReRoPE's window and 0.

    `str(policy)` gives text that `parse` reads back as an equal policy, given the same n_train.
    """

    freq: Freq = "native"
    factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    map: Map = "absolute"
    chunk: int = 0
    local: int = 0
    logn: bool = False
    n_train: int = 0
    factors: tuple[float, ...] = ()
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.freq not in _FREQS:
            raise RopeError(f"unknown frequency rule {self.freq!r}; known: {', '.join(_FREQS)}")
        if self.map not in get_args(Map):
            raise RopeError(f"unknown position map {self.map!r}; known: {', '.join(get_args(Map))}")
        if not 1.0 <= self.factor <= _MAX or (self.freq == "native" and self.factor != 1.0):
            allowed = "1" if self.freq == "native" else "1 or more"
            raise RopeError(f"{self.freq}: the factor is {self.factor}, it must be {allowed}")
        defaults = {field.name: field.default for field in fields(self)}
        for freq, names in _OWN.items():
            for name in names:
                if freq != self.freq and getattr(self, name) != defaults[name]:
                    raise RopeError(f"{name} belongs to {freq}, not to {self.freq}")
        if not _MIN <= self.beta_slow < self.beta_fast <= _MAX:
            raise RopeError(
                f"yarn: beta_slow {self.beta_slow} and beta_fast {self.beta_fast} must ascend from above 0"
            )
        if not _MIN <= self.low_freq < self.high_freq <= _MAX:
            raise RopeError(
                f"llama3: low_freq {self.low_freq} and high_freq {self.high_freq} must ascend from above 0"
            )
        if len(self.factors) > MAX_FACTORS or any(not _MIN <= f <= _MAX for f in self.factors):
            raise RopeError(f"longrope: factors must be positive, at most {MAX_FACTORS} of them")
        if self.dynamic:
            self._check_dynamic()
        needs_train = "logn" if self.logn else self.freq if self.freq in _OWN else None
        if needs_train and self.n_train < 2:
            raise RopeError(f"{needs_train} needs the trained length: give n_train, 2 or more")
        if self.n_train < 0:
            raise RopeError(f"n_train {self.n_train} is not a trained length")
        self._check_map()

    def _check_dynamic(self) -> None:
        name = f"dynamic-{self.freq}"
        if name not in _DYNAMIC:
            raise RopeError(f"{self.freq} has no dynamic factor; known: {', '.join(_DYNAMIC)}")
        if self.factor != 1.0:
            raise RopeError(
                f"{name} chooses its factor for each text: leave {notation.show(self.factor)} out"
            )
        if self.map != "absolute":
            raise RopeError(f"{name} and {self.map} exclude each other: take one of them")
        if self.n_train < 2:
            raise RopeError(f"{name} needs the trained length: give n_train, 2 or more")

    def factor_for(self, n: int, n_ctx: int) -> float:
        """The factor for a text of n tokens in a context of n_ctx: 1 within the trained length, then the power of two
        that reaches n, but no more than what reaches n_ctx. The factor of other policies never changes."""
        if not self.dynamic:
            return self.factor
        steps = 1.0
        while steps * self.n_train < n:
            steps *= 2
        return max(1.0, min(steps, n_ctx / self.n_train))

    def _check_map(self) -> None:
        given = {"absolute": 0, "rerope": 1}.get(self.map, 2)
        if (given < 1 and self.chunk) or (given < 2 and self.local):
            raise RopeError(
                f"{self.map} takes {given} values, chunk={self.chunk} and local={self.local} are given"
            )
        if given and not 1 <= self.chunk <= notation.MAX_LENGTH:
            raise RopeError(
                f"{self.map}: {_VALUES[self.map][0]} {self.chunk} is not from 1 to {notation.MAX_LENGTH}"
            )
        if self.map == "dca" and not 0 <= self.local < self.chunk >= 2:
            raise RopeError(
                f"dca: local {self.local} is not from 0 to below its chunk {self.chunk} (2 or more)"
            )
        if self.map == "self-extend" and not 1 <= self.local <= notation.MAX_LENGTH:
            raise RopeError(f"self-extend: window {self.local} is not from 1 to {notation.MAX_LENGTH}")

    @classmethod
    def parse(cls, text: str, *, n_train: int | None = None, n_ctx: int | None = None) -> RopePolicy:
        """Reads a policy.

        n_train: the model's trained length in tokens; n_ctx: the length to reach, for values that are left out.
        Raises RopeError with one line that names the piece that is wrong and the known ones.
        """
        for name, n in (("n_train", n_train), ("n_ctx", n_ctx)):
            if n is not None and n < 1:
                raise RopeError(f"{name} {n} is not a number of tokens")
        calls = [notation.call(piece, RopeError) for piece in notation.split(text.strip(), "+")]
        values: dict[str, object] = {"n_train": n_train or 0}
        for call in calls:
            if call.name in ("auto", "native", "logn") and (call.args or call.named):
                raise RopeError(f"{call.name} takes no values")
            if call.name == "auto":
                if len(calls) > 1:
                    raise RopeError(f"auto stands alone, not in {text!r}")
                if n_train is None or n_ctx is None:
                    raise RopeError(
                        "auto needs the trained length and the context length: give n_train and n_ctx"
                    )
                return choose_rope("auto", n_train, n_ctx, None)[0]
            if call.name == "logn":
                found: dict[str, object] = {"logn": True}
            elif call.name in _FREQS or call.name in _DYNAMIC:
                found = _freq(call, n_train, n_ctx)
            elif call.name in _MAPS:
                found = _map(call, n_train, n_ctx)
            else:
                raise RopeError(f"unknown policy {call.name!r}; known: {_KNOWN}")
            if values.keys() & found.keys():
                kind = {"logn": "logn", "freq": "a frequency rule"}.get(next(iter(found)), "a position map")
                raise RopeError(f"{kind} is given twice in {text!r}")
            values |= found
        return cls(**values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        terms = []
        if self.map != "absolute":
            shown = (self.chunk, self.local)[: len(_VALUES[self.map])]
            terms.append(f"{self.map}({', '.join(map(str, shown))})")
        if self.freq != "native":
            values = [] if self.dynamic else [notation.show(self.factor)]
            for name in _OWN.get(self.freq, ()):
                value = getattr(self, name)
                if value != getattr(type(self), name):
                    shown_value = (
                        "/".join(map(notation.show, value)) if name == "factors" else notation.show(value)
                    )
                    values.append(f"{name}={shown_value}")
            written = f"({', '.join(values)})" if values else ""
            terms.append(f"{'dynamic-' * self.dynamic}{self.freq}{written}")
        return "+".join([*(terms or ["native"]), *(["logn"] if self.logn else [])])

    def explain(self) -> str:
        """A few plain lines."""
        s = "a factor that follows the text's length" if self.dynamic else notation.show(self.factor)
        lines = [
            {
                "native": "rotation: as the model was trained",
                "linear": f"rotation: every frequency divided by {s} (position interpolation)",
                "ntk": f"rotation: base raised for {s} times the length (NTK-aware)",
                "yarn": f"rotation: low frequencies divided by {s}, high ones kept, logits sharpened (YaRN)",
                "llama3": f"rotation: long wavelengths divided by {s}, short ones kept (Llama 3.1)",
                "longrope": f"rotation: a divisor per dimension for {s} times the length (LongRoPE)",
            }[self.freq],
            {
                "absolute": "distance: as it is",
                "dca": f"distance: exact up to {self.local} tokens back and inside a chunk of "
                f"{self.chunk - self.local}, at most {self.chunk} (Dual Chunk Attention)",
                "self-extend": f"distance: exact below {self.local}, then 1 per {self.chunk} (Self-Extend)",
                "rerope": f"distance: exact up to {self.chunk}, {self.chunk} beyond it (ReRoPE)",
            }[self.map],
        ]
        if self.dynamic:
            lines.append(f"a text of up to {self.n_train} tokens is rotated as the model was trained")
        if self.logn:
            lines.append(
                f"queries beyond position {self.n_train} are scaled by ln(position) / ln({self.n_train})"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Takes:
    """What a model supports, according to llama.cpp and our hooks: the reason why not, or ""."""

    rope: bool = True
    no_map: str = ""
    no_scaling: str = ""

    def refusal(self, policy: RopePolicy) -> str:
        """Why the model cannot run a policy, or "". Log-n needs the op, as a map does."""
        if (policy.map != "absolute" or policy.logn) and self.no_map:
            return self.no_map
        return self.no_scaling if policy.freq != "native" else ""


def choose_rope(
    text: str,
    n_train: int,
    n_ctx: int,
    gguf_scaling: str | None,
    extension: str = "",
    reach: int = notation.ALL,
    takes: Takes | None = None,
) -> tuple[RopePolicy, str]:
    """The policy for a model and a context length, and one line that says why it was chosen.

    gguf_scaling: the RoPE scaling that the GGUF carries (`linear`, `yarn`, `llama3`, `longrope`), or None.
    n_train is then the length that this scaling reaches, and the frequencies are not scaled a second time.
    extension: the policy that the GGUF names for lengths beyond n_train (`{arch}.rope.extension`), or "".
    reach: of the attention plan: how many tokens back a query reads at most. A plan that stays within n_train never
    presents an unknown distance to the model. takes: what the model can run; `auto` chooses among that.
    """
    takes = takes or Takes()
    scaling = None if gguf_scaling in (None, "", "none") else gguf_scaling
    automatic = text.strip() == "auto"
    own = f", which the GGUF's own {scaling} scaling reaches" if scaling and automatic else ""
    if automatic and not takes.rope:
        return RopePolicy(n_train=n_train), WITHOUT_ROPE
    beyond = f"auto: {n_ctx} tokens are beyond the trained length {n_train}{own}; "
    if automatic and n_ctx <= n_train:
        return (
            RopePolicy(n_train=n_train),
            f"auto: {n_ctx} tokens are within the trained length {n_train}{own}",
        )
    if automatic and not extension and reach <= n_train:
        why = (
            f"auto: no query reads further than {reach} tokens back, within the trained length {n_train}{own}"
        )
        return RopePolicy(n_train=n_train), why
    why = "asked for"
    if automatic:
        text, found = _beyond(n_train, n_ctx, bool(scaling), extension, takes)
        why = beyond + found
    policy = RopePolicy.parse(text, n_train=n_train, n_ctx=n_ctx)
    if scaling and policy.freq != "native":
        raise RopeError(
            f"{policy} would scale twice: the GGUF carries {scaling} to its {n_train} tokens; "
            "write auto, native or a position map (dca, self-extend, rerope)"
        )
    if not automatic and min(n_ctx, reach) > n_train and policy.freq == "native" and policy.map == "absolute":
        why += f"; the model knows only {n_train} positions"
    return policy, why


def _beyond(n_train: int, n_ctx: int, scaling: bool, extension: str, takes: Takes) -> tuple[str, str]:
    """The first policy for lengths beyond n_train that the model can run, and the reason."""
    yarn = "YaRN's factor follows each text, and a short one is not scaled"
    choices = [(extension, "the GGUF names this policy")] if extension else []
    if n_ctx <= _REACH * n_train and not scaling:
        choices.append(("dynamic-yarn", yarn))
    choices.append(
        (
            f"rerope({max(1, n_train // 2)})+logn",
            "ReRoPE with log-n kept retrieval best there without training",
        )
    )
    if n_ctx > _REACH * n_train and not scaling:
        choices.append(
            ("dynamic-yarn", f"{yarn}; beyond {_REACH} times the trained length expect it to lose facts")
        )
    reasons: list[str] = []
    for text, why in choices:
        policy = RopePolicy.parse(text, n_train=n_train, n_ctx=n_ctx)
        refusal = takes.refusal(policy)
        if not refusal:
            return text, "; ".join([*reasons, why])
        reasons.append(f"{policy} is left out ({refusal})")
    return "native", "; ".join([*reasons, f"the model knows only {n_train} positions"])


def _freq(call: notation.Call, n_train: int | None, n_ctx: int | None) -> dict[str, object]:
    if call.name == "native":
        return {"freq": "native"}
    name = _DYNAMIC.get(call.name, call.name)
    known = _OWN.get(name, ())
    dynamic = call.name in _DYNAMIC
    unknown = [*call.args[0 if dynamic else 1 :], *(key for key in call.named if key not in known)]
    if unknown:
        what = [*([] if dynamic else ["the factor"]), *(f"{key}=" for key in known)]
        raise RopeError(f"{call.name}: unknown {unknown[0]!r}; known: {', '.join(what) or 'nothing'}")
    found: dict[str, object] = {"freq": name}
    if dynamic:
        found["dynamic"] = True
    elif call.args:
        found["factor"] = notation.number(call.args[0], call.name, RopeError)
    elif n_train is None or n_ctx is None:
        raise RopeError(f"{call.name} needs a factor: write {call.name}(4), or give n_train and n_ctx")
    else:
        found["factor"] = max(1.0, n_ctx / n_train)
    for key, value in call.named.items():
        numbers = [notation.number(n.strip(), f"{call.name}: {key}", RopeError) for n in value.split("/")]
        if key != "factors" and len(numbers) > 1:
            raise RopeError(f"{call.name}: {key}={value!r} is not one number")
        found[key] = tuple(numbers) if key == "factors" else numbers[0]
    return found


def _map(call: notation.Call, n_train: int | None, n_ctx: int | None) -> dict[str, object]:
    names = _VALUES[call.name]
    if call.named or len(call.args) not in (0, len(names)):
        raise RopeError(f"{call.name} takes ({', '.join(names)}) in tokens, or nothing")
    if call.args:
        low = 0 if call.name == "dca" else 1
        given = [
            notation.integer(a, f"{call.name}: {v}", RopeError, low)
            for a, v in zip(call.args, names, strict=True)
        ]
    elif n_train is None or (call.name == "self-extend" and n_ctx is None):
        needed = "n_train and n_ctx" if call.name == "self-extend" else "n_train"
        raise RopeError(f"{call.name} needs ({', '.join(names)}): write them, or give {needed}")
    elif call.name == "dca":
        given = [max(2, 3 * n_train // 4), n_train // 8]
    elif call.name == "rerope":
        given = [max(1, n_train // 2)]
    else:
        given = [-(-2 * max(n_ctx or 0, 1) // n_train), max(1, n_train // 4)]
    chunk, local = (*given, 0)[:2]
    return {"map": call.name, "chunk": chunk, "local": local}
