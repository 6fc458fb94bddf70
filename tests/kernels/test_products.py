"""Sums of products, compiled and by torch, against products in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.kernels.compiled import products_for
from llamafarm.kernels.products import Term, multiply, multiply_turned

pytestmark = pytest.mark.usefixtures("each_way")

COUNTS = st.sampled_from([1, 2, 7, 16, 33, 64, 100, 1100, 2500, 9000])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(
    found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, num_roundings: int, depth: int
) -> None:
    """Compare by the size of what is summed up, which may come to little in the end."""
    size = max(float(exact.norm()), (depth * exact.numel()) ** 0.5)
    most = 1e-5 if dtype == torch.float32 else 0.004 * num_roundings
    assert found.shape == exact.shape
    assert (found.double() - exact).norm() <= most * size + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.sampled_from([1, 5, 6, 13, 64, 200]),
    num_columns=st.sampled_from([1, 3, 16, 40, 64, 65, 130, 300]),
    terms=st.lists(st.tuples(COUNTS, st.booleans(), st.booleans()), min_size=1, max_size=4),
    has_bias=st.booleans(),
    is_added=st.booleans(),
    has_out=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_a_sum_of_products(
    num_rows: int,
    num_columns: int,
    terms: list[tuple[int, bool, bool]],
    has_bias: bool,
    is_added: bool,
    has_out: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    exact = torch.zeros(num_rows, num_columns, dtype=torch.float64)
    given_terms = []
    for place, (count, along, is_slice) in enumerate(terms):
        # A slice is what one product of several layers is cut into.
        left = draw(seed + place, num_rows, count + 3, dtype=dtype)[:, 1 : count + 1]
        left = left if is_slice else left.contiguous()
        shape = (count, num_columns) if along else (num_columns, count)
        right = draw(seed + 50 + place, *shape, dtype=dtype)
        given_terms.append(Term(left, right, along))
        exact += left.double() @ (right if along else right.t()).double()
    bias = draw(seed + 98, num_columns, dtype=dtype) if has_bias else None
    added = draw(seed + 99, num_rows, num_columns, dtype=dtype) if is_added else None
    for one in (bias, added):
        exact += 0 if one is None else one.double()
    out = torch.full((num_rows, num_columns), torch.nan, dtype=dtype) if has_out else None
    found = multiply(given_terms, bias_O=bias, added_TO=added, out_TO=out)
    assert out is None or found.data_ptr() == out.data_ptr()
    assert found.dtype == dtype
    depth = sum(count for count, _, _ in terms)
    assert_close(found, exact, dtype, len(terms) + 1, depth)


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.sampled_from([0, 1, 2, 15, 64, 333, 3000]),
    num_left=st.sampled_from([1, 2, 8, 24, 65]),
    num_right=st.sampled_from([1, 16, 40, 64, 130]),
    factor=st.sampled_from([1.0, 0.5]),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_a_product_with_its_left_factor_turned(
    num_tokens: int, num_left: int, num_right: int, factor: float, dtype: torch.dtype, seed: int
) -> None:
    left = draw(seed, num_tokens, num_left + 1, dtype=dtype)[:, 1:]
    right = draw(seed + 1, num_tokens, num_right, dtype=dtype)
    exact = factor * (left.double().t() @ right.double())
    found = multiply_turned(left, right, factor)
    assert found.dtype == torch.float32
    assert_close(found, exact, dtype, 2, num_tokens)


def test_no_rows_are_no_work() -> None:
    nothing = multiply([Term(torch.empty(0, 8), torch.ones(16, 8))])
    assert nothing.shape == (0, 16)


def test_what_is_not_a_number_stays_so() -> None:
    left, right = torch.ones(7, 40), torch.ones(70, 40)
    left[3, 39] = torch.nan
    product = multiply([Term(left, right)])
    assert product[3].isnan().all() and product[torch.arange(7) != 3].eq(40).all()


def test_sums_do_not_depend_on_the_threads() -> None:
    before = torch.get_num_threads()
    terms = [Term(draw(1, 500, 300), draw(2, 130, 300)), Term(draw(3, 500, 8), draw(4, 130, 8))]
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            if products_for(terms) is not None:  # torch's own make no such promise
                found.append(multiply(terms))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "along"), [(8, False), (9000, True)])
def test_a_weight_that_is_held_otherwise_is_made_dense_by_torch(
    count: int, along: bool, dtype: torch.dtype
) -> None:
    class Held:
        def __init__(self) -> None:
            self.dtype = dtype

        def dense(self) -> torch.Tensor:
            return torch.ones((count, 256) if along else (256, count), dtype=dtype)

    terms = [Term(torch.ones(3, count, dtype=dtype), Held(), along)]
    assert products_for(terms) is None
    assert multiply(terms).sub(count).abs().max() <= 0.004 * count
