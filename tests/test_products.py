"""Products with quantized weights: against float64, and the same bits for any number of rows and threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cases import Array
from product_graph import TYPES, dequantized, expert_product, product, quantized, rounded

from pyllama_long import _native

USABLE = [name for name, usable in _native.products().items() if usable]
# Columns: less than a panel of 512, one, and some that end in a part of one.
COLUMNS = {1: (1, 5, 530), 32: (32, 96, 544, 1312), 256: (256, 512, 1280)}


@pytest.fixture(autouse=True)
def best_again() -> Iterator[None]:
    yield
    _native.force_product(None)


def tensors(name: str, n: int, rows: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    """Weights in blocks, and activations with some large ones, as a model's are."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((n, columns), np.float32) / np.float32(np.sqrt(columns))
    x = random.standard_normal((rows, columns), np.float32)
    x[:, ::37] *= 20
    return quantized(weights, name), x


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", TYPES)
def test_agrees_with_float64(name: str, isa: str) -> None:
    _native.force_product(isa)
    before = _native.product_tiles(isa)
    for columns in COLUMNS[TYPES[name][1]]:
        for n, rows in ((1, 1), (33, 2), (31, 3), (70, 7), (64, 13)):
            weights, x = tensors(name, n, rows, columns, seed=n)
            exact = dequantized(weights, name, columns)
            y = rounded(x, name)
            got = product(name, weights, x)
            allowed = 2e-6 * (np.abs(y) @ np.abs(exact).T)
            assert np.all(np.abs(got - y @ exact.T) <= allowed), (columns, n, rows)
    assert _native.product_tiles(isa) > before


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", TYPES)
def test_every_row_has_the_bits_that_it_has_alone(name: str, isa: str) -> None:
    _native.force_product(isa)
    columns = 768
    weights, x = tensors(name, 45, 61, columns)
    alone = np.stack([product(name, weights, row[None])[0] for row in x])
    for rows in (2, 3, 4, 5, 6, 16, 61):
        for threads in (1, 2, 3):
            assert np.array_equal(product(name, weights, x[:rows], threads), alone[:rows])


def test_all_instruction_sets_give_the_same_bits() -> None:
    for name in TYPES:
        weights, x = tensors(name, 40, 9, 768)
        found = []
        for isa in USABLE:
            _native.force_product(isa)
            found.append(product(name, weights, x))
        assert all(np.array_equal(found[0], other) for other in found[1:]), name


def test_is_not_less_accurate_than_upstream() -> None:
    for name in TYPES.keys() - {"f32"}:
        weights, x = tensors(name, 64, 32, 1024)
        exact = x.astype(np.float64) @ dequantized(weights, name, 1024).T
        error = {}
        for code in (None, "upstream"):
            _native.force_product(code)
            error[code] = np.sqrt(np.mean((product(name, weights, x) - exact) ** 2))
        assert error[None] <= 1.02 * error["upstream"], (name, error)


@pytest.mark.parametrize("isa", USABLE)
def test_batches_of_rows(isa: str) -> None:
    _native.force_product(isa)
    weights, x = tensors("q4_K", 40, 30, 512)
    apart = product("q4_K", weights, x)
    together = product("q4_K", weights, x.reshape(2, 3, 5, 512))
    assert np.array_equal(together.reshape(30, 40), apart)


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_K", "q6_K", "mxfp4"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_experts(name: str, shared: bool, isa: str) -> None:
    _native.force_product(isa)
    random = np.random.default_rng(1)
    experts, tokens, used, n, columns = 7, 19, 3, 37, 768
    weights = np.stack([tensors(name, n, 1, columns, seed=e)[0] for e in range(experts)])
    ids = np.stack(
        [random.permutation(experts - 1)[:used] for _ in range(tokens)]
    )  # the last one has no rows
    ids[0, 0] = 5
    x = random.standard_normal((tokens, 1 if shared else used, columns), np.float32)
    got = expert_product(name, weights, x, ids, 3)
    for t in range(tokens):
        for i in range(used):
            row = x[t, 0 if shared else i]
            assert np.array_equal(got[t, i], product(name, weights[ids[t, i]], row[None])[0]), (t, i)
    one = expert_product(name, weights, x[:1], ids[:1])
    assert np.array_equal(one, got[:1])


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_alone(isa: str, bad: float) -> None:
    _native.force_product(isa)
    weights, x = tensors("q6_K", 40, 8, 768)
    good = product("q6_K", weights, x)
    x[5, 700] = bad
    got = product("q6_K", weights, x)
    assert np.isnan(got[5]).all()
    assert np.array_equal(np.delete(got, 5, axis=0), np.delete(good, 5, axis=0))


@pytest.mark.parametrize("isa", USABLE)
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30])
def test_extreme_activations(isa: str, size: float) -> None:
    _native.force_product(isa)
    weights, x = tensors("q4_1", 20, 4, 96)
    with np.errstate(under="ignore"):
        x *= np.float32(size)
    got = product("q4_1", weights, x)
    assert np.isfinite(got).all()
    expected = rounded(x, "q4_1") @ dequantized(weights, "q4_1", 96).T
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(initial=0) + 1e-40


def test_forcing() -> None:
    _native.force_product("upstream")
    assert _native.product() == "upstream"
    assert not _native.product_takes(TYPES["q8_0"][0])
    _native.force_product(None)
    assert _native.product() == (USABLE[0] if USABLE else "upstream")
    with pytest.raises(ValueError, match=r"'abacus' cannot be used here; usable: .*upstream"):
        _native.force_product("abacus")
