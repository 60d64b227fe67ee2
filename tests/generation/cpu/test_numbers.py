"""Groups of small numbers, and two of 4 bits in a byte."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glassgpt.generation.cpu.numbers import Groups, StoredGroups, from_nibbles, to_groups, to_nibbles


@given(arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 67)), elements=st.integers(-8, 7)))
def test_nibbles_come_back(numbers: np.ndarray) -> None:
    packed = to_nibbles(numbers)
    assert (packed.shape, packed.dtype) == ((len(numbers), -(-numbers.shape[1] // 2)), np.uint8)
    back = from_nibbles(packed, numbers.shape[1])
    assert back.dtype == np.int8
    assert np.array_equal(back, numbers)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 67)), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([8, 4]),
)
def test_no_number_is_further_than_a_step(matrix: np.ndarray, bits: int) -> None:
    groups = to_groups(matrix, bits)
    steps = np.repeat(np.abs(groups.scales), 32, axis=1)[:, : matrix.shape[1]]
    # half a step of rounding; 4 bits clip the side that has 7 at a whole one, and a bfloat16 scale is 2^-8 off
    most = {8: 0.5 + 127 / 256, 4: 1 + 8 / 256}[bits]
    assert (np.abs(groups.to_float32() - matrix) <= most * steps + 1e-30).all()


@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 67)), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([8, 4]),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_what_a_file_holds_is_unpacked_by_rows(matrix: np.ndarray, bits: int, start: int, stop: int) -> None:
    groups = to_groups(matrix, bits)
    upper = (groups.scales.view(np.uint32) >> 16).astype(np.uint16)
    numbers = groups.numbers if bits == 8 else to_nibbles(groups.numbers)
    stored = StoredGroups(numbers, upper, matrix.shape[1])
    assert stored.shape == groups.shape == matrix.shape
    for found, expected in zip(stored.rows(slice(start, stop)), groups.rows(slice(start, stop)), strict=True):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    assert isinstance(stored.rows(slice(0, 1)), Groups)
    assert np.array_equal(stored.to_float32(), groups.to_float32())
