from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pyllama_long import context_options


def test_kv_types_by_number() -> None:
    assert {context_options.kv_type(name) for name in context_options.KV_TYPES} == {0, 1, 2, 8, 30}
    for number in (*(kind.number for kind in context_options.KV_TYPES.values()), 3, 6, 7, 20):
        assert context_options.kv_type(number) == number
    for number in (-1, 4, 26, 31, 99, 100000):
        with pytest.raises(ValueError, match=rf"type_v {number}; known: 0 \(f32\), 1 \(f16\), 2 \(q4_0\), 3"):
            context_options.kv_type(number)


@pytest.mark.parametrize("name", context_options.KV_TYPES)
def test_bits_are_ggmls(name: str) -> None:
    number, bits = context_options.KV_TYPES[name]
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    assert bits == 8 * size / values
    assert context_options.bytes_per_value(number, number) == bits / 8
    assert context_options.kv_type_name(number) == name
