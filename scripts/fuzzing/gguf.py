"""Takes a GGUF apart and puts it together again with an error in it."""

from __future__ import annotations

import copy
import random
import struct
from collections.abc import Sequence
from typing import Any

_INTEGERS = (0, 1, 2, 3, 7, 16, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS = (0.0, -1.0, 1e-45, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    b"",
    b"foo",
    b"none",
    b"yarn",
    b"longrope",
    b"gpt-4o",
    b"llama-bpe",
    b"\xff\xfe",
    b"{{ 1 }}",
    b"a" * 3000,
)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_EXTRA = (
    "rope.scaling.type rope.scaling.factor rope.scale_linear rope.scaling.original_context_length "
    "rope.dimension_count_swa rope.freq_base_swa rope.dimension_sections attention.sliding_window "
    "attention.sliding_window_pattern attention.chunk_size attention.logit_softcapping attention.max_alibi_bias "
    "attention.key_length_swa attention.key_length_mla attention.kv_lora_rank attention.dilated.segment_lengths "
    "attention.dilated.rates attention.shared_kv_layers attention.causal pooling_type expert_count expert_used_count "
    "expert_shared_count expert_group_count leading_dense_block_count nextn_predict_layers ssm.conv_kernel "
    "ssm.state_size ssm.inner_size ssm.group_count ssm.time_step_rank logit_scale"
).split()


class Entry:
    """A key of a GGUF: its place in the header's bytes, and the type and bytes of its value."""

    def __init__(self, key: bytes, kind: int, value: bytes) -> None:
        self.key, self.kind, self.value = key, kind, value

    def raw(self) -> bytes:
        return struct.pack("<Q", len(self.key)) + self.key + struct.pack("<I", self.kind) + self.value


class Model:
    """A GGUF taken apart into its keys, tensor infos and data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        self.entries = [self.entry() for _ in range(n_keys)]
        self.infos = [self.info() for _ in range(n_tensors)]
        self.rest = data[-(-self.at // 32) * 32 :]

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> bytes:
        n = self.number("<Q")
        self.at += n
        return self.data[self.at - n : self.at]

    def entry(self) -> Entry:
        key, kind = self.text(), self.number("<I")
        begin = self.at
        self.skip(kind)
        return Entry(key, kind, self.data[begin : self.at])

    def skip(self, kind: int) -> None:
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, n = self.number("<I"), self.number("<Q")
            for _ in range(n):
                self.skip(inner)
        else:
            self.at += _SIZES[kind]

    def info(self) -> list[Any]:
        name, n_dims = self.text(), self.number("<I")
        return [name, [self.number("<Q") for _ in range(n_dims)], self.number("<I"), self.number("<Q")]

    def raw(self, entries: Sequence[Entry], infos: Sequence[list[Any]]) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(e.raw() for e in entries)
        for name, dims, kind, offset in infos:
            head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
            head += b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
        return head + bytes(-len(head) % 32) + self.rest


def value_of(kind: int, rng: random.Random) -> bytes:
    """Bytes of an extreme value of a gguf_type."""
    if kind == 8:
        text = rng.choice(_TEXTS)
        return struct.pack("<Q", len(text)) + text
    if kind == 9:
        inner, n = rng.choice((4, 5, 6, 7, 8, 10)), rng.choice((0, 1, 2, 4, 5, 600))
        return struct.pack("<IQ", inner, n) + b"".join(value_of(inner, rng) for _ in range(n))
    form = _FORMS[kind]
    if kind in (6, 12):
        return struct.pack(form, rng.choice(_FLOATS))
    size = struct.calcsize(form)
    return (rng.choice(_INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")


def mutate(model: Model, arch: str, rng: random.Random) -> tuple[str, bytes]:
    """Returns the kind of a change, and the file with it."""
    entries, infos = list(model.entries), copy.deepcopy(model.infos)
    kind = rng.choices(
        ("value", "type", "missing", "extra", "double", "tensor", "bytes", "cut"), (8, 2, 1, 5, 1, 3, 2, 1)
    )[0]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        i = rng.randrange(len(entries))
        old = entries[i]
        if kind == "value":
            entries[i] = Entry(old.key, old.kind, value_of(old.kind, rng))
        elif kind == "type":
            other = rng.choice((*_SIZES, 8, 9))
            entries[i] = Entry(old.key, other, value_of(other, rng))
        elif kind == "missing":
            del entries[i]
        elif kind == "double":
            entries.append(old)
        elif kind == "extra":
            key = rng.choice(
                ("general.alignment", "tokenizer.ggml.add_bos_token", *(f"{arch}.{k}" for k in _EXTRA))
            )
            entries = [e for e in entries if e.key != key.encode()]
            other = 8 if key.endswith("type") and rng.random() < 0.8 else rng.choice((4, 4, 4, 6, 8, 9))
            entries.append(Entry(key.encode(), other, value_of(other, rng)))
        elif kind == "tensor":
            info = rng.choice(infos)
            what = rng.randrange(4)
            if what == 0:
                info[1][rng.randrange(len(info[1]))] = rng.choice((0, 1, 2, 32, 2**31, 2**40, 2**63))
            elif what == 1:
                info[2] = rng.choice((*range(42), 1000))
            elif what == 2:
                info[3] = rng.choice((0, 1, 32, 2**40, 2**63, 2**64 - 32))
            else:
                info[0] = rng.choice(infos)[0]
    data = model.raw(entries, infos)
    head = len(data) - len(model.rest)
    if kind == "bytes":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(4, head)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        data = bytes(changed)
    elif kind == "cut":
        data = data[: rng.randrange(len(data))]
    return kind, data
