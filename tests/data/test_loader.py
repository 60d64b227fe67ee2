import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.data import loader as loader_module
from glassgpt.data.loader import BatchLoader, evaluation_batches
from glassgpt.data.shards import TokenSequence


def starts(inputs: torch.Tensor) -> list[int]:
    """With tokens 0, 1, 2 ... a block's first token is where it starts."""
    return [int(row[0]) for row in inputs]


@given(
    n_blocks=st.integers(1, 7),
    remainder=st.integers(0, 4),
    context_length=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_epoch_has_each_block_once(
    n_blocks: int, remainder: int, context_length: int, batch_size: int, seed: int
) -> None:
    """Three epochs of any small data, batches crossing their edges: the starts tile each epoch exactly."""
    remainder %= context_length
    tokens = np.arange(n_blocks * context_length + 1 + remainder)
    loader = BatchLoader(tokens, batch_size=batch_size, context_length=context_length, seed=seed)
    assert loader.blocks_per_epoch == n_blocks
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * n_blocks:
        inputs, targets = loader.batch(step)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(context_length))
        seen += starts(inputs)
        step += 1
    for epoch in range(3):
        ordered = sorted(seen[epoch * n_blocks : (epoch + 1) * n_blocks])
        assert 0 <= ordered[0] <= remainder
        assert ordered == [ordered[0] + i * context_length for i in range(n_blocks)]


def test_one_block_and_one_token_three_epochs() -> None:
    loader = BatchLoader(np.arange(9), batch_size=3, context_length=8, seed=0)
    inputs, targets = loader.batch(0)
    assert Counter(starts(inputs)) == {0: 3}
    assert inputs.tolist()[0] == list(range(8))
    assert targets.tolist()[0] == list(range(1, 9))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(0, 99))
def test_a_batch_depends_on_seed_and_step_only(steps: list[int], seed: int) -> None:
    """Whatever was asked before, a fresh loader gives the same batch."""

    def fresh() -> BatchLoader:
        return BatchLoader(np.arange(100, dtype=np.uint16), batch_size=4, context_length=7, seed=seed)

    used = fresh()
    for step in steps:
        for left, right in zip(used.batch(step), fresh().batch(step), strict=True):
            assert torch.equal(left, right)


def test_order_and_boundaries_change_with_epoch_and_seed() -> None:
    def epoch(seed: int, step: int) -> list[int]:
        loader = BatchLoader(np.arange(1000), batch_size=31, context_length=32, seed=seed)
        assert loader.blocks_per_epoch == 31
        return starts(loader.batch(step)[0])

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(order != sorted(order) for order in orders)
    assert len({min(epoch(0, step)) for step in range(20)}) > 3  # of the 8 there may be


def test_golden_order() -> None:
    """A run must get the same data from every version of numpy and of this code, or its resume is wrong.

    If this fails because the order was changed on purpose, runs begun before can't be resumed: say so.
    """
    loader = BatchLoader(np.arange(50), batch_size=8, context_length=5, seed=1234)
    assert [starts(loader.batch(step)[0]) for step in (0, 1, 1000)] == [
        [37, 42, 32, 12, 2, 17, 7, 22],
        [27, 41, 21, 26, 16, 6, 36, 1],
        [44, 8, 13, 43, 3, 38, 33, 23],
    ]


def test_batches_are_contiguous_int64_of_any_token_type() -> None:
    for dtype in (np.uint16, np.uint32):
        inputs, targets = BatchLoader(np.full(9, 65_535, dtype), batch_size=2, context_length=4, seed=0).batch(0)
        for tensor in (inputs, targets):
            assert tensor.dtype == torch.int64
            assert tensor.shape == (2, 4)
            assert tensor.is_contiguous()
            assert tensor.max() == 65_535


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 50))
def test_ranks_share_out_the_batch_of_one_process(world_size: int, step: int) -> None:
    def batch(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return BatchLoader(
            np.arange(100), batch_size=12, context_length=9, seed=3, rank=rank, world_size=world_size
        ).batch(step)

    shares = [batch(rank, world_size) for rank in range(world_size)]
    for whole, parts in zip(batch(0, 1), zip(*shares, strict=True), strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(whole[rank::world_size], part)


@pytest.mark.parametrize(
    ("n_tokens", "message"),
    [
        (
            37,
            "your text is 37 tokens, but a context length of 256 needs 257: use a context length of 36 or less, or",
        ),
        (256, "your text is 256 tokens.* use a context length of 255 or less, or add text"),
        (1, "your text is 1 tokens, but a context length of 256 needs 257: add text"),
        (0, "your text is 0 tokens"),
    ],
)
def test_a_text_shorter_than_a_block(n_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLoader(np.zeros(n_tokens, np.uint16), batch_size=1, context_length=256, seed=0)
    BatchLoader(np.zeros(257, np.uint16), batch_size=1, context_length=256, seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "^batch_size 0 must be"),
        ({"context_length": -1}, "^context_length -1 must be"),
        ({"seed": -1}, "^seed -1 must be"),
        ({"seed": 2**64}, "^seed 18446744073709551616 must be"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes"),
        ({"world_size": 3}, "batch_size 4 with rank 0 of 3 processes.*divide evenly"),
    ],
)
def test_numbers_out_of_range(changed: dict[str, int], message: str) -> None:
    good = {"batch_size": 4, "context_length": 2, "seed": 0}
    BatchLoader(np.zeros(9), **good)
    with pytest.raises(ValueError, match=message):
        BatchLoader(np.zeros(9), **good | changed)


# ---- evaluation --------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 12))
def test_evaluation_scores_every_token_once(n_tokens: int, batch_size: int, context_length: int) -> None:
    batches = list(evaluation_batches(np.arange(n_tokens), batch_size, context_length))
    scored = torch.cat([targets.flatten() for _, targets in batches]).tolist()
    assert scored == list(range(1, n_tokens))
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in batches)
    assert all(inputs.shape[1] == min(context_length, n_tokens - 1) for inputs, _ in batches[:-1])
    assert all(len(inputs) <= batch_size for inputs, _ in batches)


@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 12), st.integers(1, 20))
def test_the_blocks_of_an_evaluation_do_not_depend_on_the_rows_at_once(
    n_tokens: int, batch_size: int, context_length: int, max_blocks: int
) -> None:
    def blocks(rows: int) -> list[list[int]]:
        batches = evaluation_batches(np.arange(n_tokens), rows, context_length, max_blocks)
        return [row.tolist() for inputs, _ in batches for row in inputs]

    assert blocks(batch_size) == blocks(1)
    assert len(blocks(1)) == min(max_blocks, max(1, (n_tokens - 1) // context_length))


def test_evaluation_of_a_text_shorter_than_a_block_is_one_shorter_block() -> None:
    ((inputs, targets),) = evaluation_batches(np.arange(6), batch_size=4, context_length=256)
    assert inputs.tolist() == [[0, 1, 2, 3, 4]]
    assert targets.tolist() == [[1, 2, 3, 4, 5]]


def test_fewer_evaluation_batches_are_spread_over_the_text() -> None:
    batches = list(evaluation_batches(np.arange(1001), batch_size=2, context_length=10, max_blocks=4))
    assert [starts(inputs) for inputs, _ in batches] == [[0, 250], [500, 750]]
    all_of_them = list(evaluation_batches(np.arange(41), 2, 10, max_blocks=198))
    assert [starts(inputs) for inputs, _ in all_of_them] == [[0, 10], [20, 30]]


@pytest.mark.parametrize(
    ("n_tokens", "sizes", "message"),
    [
        (1, (1, 1, None), "1 tokens, but needs 2"),
        (9, (0, 1, None), "^batch_size 0 must be"),
        (9, (1, 0, None), "^context_length 0 must be"),
        (9, (1, 1, 0), "^max_blocks 0 must be"),
    ],
)
def test_evaluation_errors(n_tokens: int, sizes: tuple[int, int, int | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(evaluation_batches(np.zeros(n_tokens), *sizes))


# ---- memory ------------------------------------------------------------------------------------------------

READ_ALL = """
import resource, sys
import numpy as np
from glassgpt.data import loader as loader_module
from glassgpt.data.loader import BatchLoader, evaluation_batches
from glassgpt.data.shards import TokenSequence

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

tokens = np.load(sys.argv[1], mmap_mode="r")
loader = BatchLoader(tokens, batch_size=16, context_length=1024, seed=0)
loader.batch(0)
before = peak()
for _ in evaluation_batches(tokens, 16, 1024):
    pass
for step in range(loader.blocks_per_epoch // 16):
    loader.batch(step)
print(peak() - before)
"""


def test_memory_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="the peak memory of a process is measured on Unix only")
    path = tmp_path / "tokens.npy"
    np.save(path, np.zeros(32 << 20, np.uint16))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\n", done.stdout)
    assert int(done.stdout) < 16 << 20  # of the 64 MiB that were read twice


# ---- tokens of many shards, and of more blocks than an array should have ------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 7), st.integers(0, 20))
def test_shards_are_read_as_if_they_were_one(sizes: list[int], context_length: int, step: int) -> None:
    whole = np.arange(sum(sizes) + context_length + 1)
    shards = TokenSequence(np.split(whole, np.cumsum(sizes)))
    loaders = [BatchLoader(t, batch_size=3, context_length=context_length, seed=1) for t in (whole, shards)]
    for left, right in zip(*(loader.batch(step) for loader in loaders), strict=True):
        assert torch.equal(left, right)
    batches = [list(evaluation_batches(t, 2, context_length)) for t in (whole, shards)]
    for (x, y), (x2, y2) in zip(*batches, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


@given(st.integers(1, 700), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_a_permutation_without_memory_has_each_number_once(n: int, keys: list[int]) -> None:
    permutation = loader_module._Permutation(n, keys)
    assert sorted(permutation[i] for i in range(n)) == list(range(n))


def test_it_looks_random() -> None:
    """Neighbours end up as far apart as random numbers do, and epochs are unlike each other."""
    n = 4000
    orders = []
    for key in range(2):
        permutation = loader_module._Permutation(n, np.random.Philox(key).random_raw(6).tolist())
        orders.append(np.array([permutation[i] for i in range(n)]))
    for order in orders:
        assert abs(np.abs(np.diff(order)).mean() / n - 1 / 3) < 0.02
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.06
    assert abs(np.corrcoef(*orders)[0, 1]) < 0.06
    assert (orders[0] == orders[1]).mean() < 0.01


def test_an_epoch_of_many_blocks_has_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_MOST_IN_MEMORY", 50)
    loader = BatchLoader(np.arange(403), batch_size=10, context_length=4, seed=7)
    assert loader.blocks_per_epoch == 100
    epochs = [[start for step in range(10 * e, 10 * e + 10) for start in starts(loader.batch(step)[0])] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch) == [min(epoch) + 4 * i for i in range(100)]
    assert epochs[0] != epochs[1]
    assert starts(BatchLoader(np.arange(403), batch_size=10, context_length=4, seed=7).batch(3)[0]) == epochs[0][30:40]


def test_the_golden_order_of_many_blocks() -> None:
    """As `test_golden_order`, for orders that are computed."""

    class Long:
        """Two thousand million tokens, each its own place."""

        def __len__(self) -> int:
            return 2 * 10**9

        def __getitem__(self, where: slice) -> np.ndarray:
            return np.arange(where.start, where.stop)

    loader = BatchLoader(Long(), batch_size=4, context_length=1000, seed=5)
    assert loader.blocks_per_epoch > loader_module._MOST_IN_MEMORY
    assert [starts(loader.batch(step)[0]) for step in (0, 500_000)] == MANY_BLOCKS


MANY_BLOCKS = [[1580267129, 315669129, 255300129, 1482346129], [209260789, 242928789, 294899789, 13448789]]
