from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pyllama_long import context_options


def test_kv_types_by_number() -> None:
    numbers = {context_options.kv_type(name) for name in context_options.KV_TYPES}
    assert numbers == {0, 1, 2, 3, 6, 7, 8, 20, 30}
    for number in numbers:
        assert context_options.kv_type(number) == number
    for number in (-1, 4, 26, 31, 99, 100000):
        with pytest.raises(ValueError, match=rf"type_v {number}; known: 0 \(f32\), 1 \(f16\), 2 \(q4_0\), 3"):
            context_options.kv_type(number, "type_v")


def test_kv_types_of_k_and_v() -> None:
    assert context_options.kv_types("q5_1", None, None) == (7, 7)
    assert context_options.kv_types("f16", "q8_0", None) == (8, 1)
    assert context_options.kv_types("f16", 20, "q4_1") == (20, 3)
    with pytest.raises(
        ValueError, match="unknown type_k 'q6_0'; known: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl"
    ):
        context_options.kv_types("f16", "q6_0", None)


@pytest.mark.parametrize("name", context_options.KV_TYPES)
def test_bits_are_ggmls(name: str) -> None:
    number, bits = context_options.KV_TYPES[name]
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    assert bits == 8 * size / values
    assert context_options.bytes_per_value(number, number) == bits / 8
    assert context_options.kv_type_name(number) == name
