"""A decoder without PyTorch: one call into compiled code for each step of all live rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from glassgpt.config import NORM_EPS
from glassgpt.generation.cpu.cache import new_cache
from glassgpt.generation.cpu.draw import NO_DRAWS, NONE, Draws, new_draws
from glassgpt.generation.cpu.forward import Room, forward, n_phases, new_room
from glassgpt.generation.cpu.kernels import GELU_ERF, GELU_TANH
from glassgpt.generation.cpu.numbers import Array
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.team import Team, new_phases
from glassgpt.generation.cpu.tiles import PANEL, has_float16
from glassgpt.generation.cpu.tuning import ALONE, MEASURED_AHEAD, Tuner
from glassgpt.generation.cpu.weights import Packed
from glassgpt.generation.decoder import Draw, Leaves, Prefix, ReadsAll, Row, RunsAhead, Scores, Speculative

_PIECE = 64
"""Tokens whose scores are held at once."""
_LEAST = 128
"""Tokens that a row has room for from the beginning."""
_ROWS = 6
"""Tokens of one row whose attention is computed together."""
_ROOMS, _SMALL = 8, 64
"""Sizes of steps whose room is kept for the next, and the most tokens that such a step has."""


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """See `decoder.Prefix`: the keys and values of one row."""

    n_tokens: int
    scores: Row | None
    keys: Array
    values: Array


class CPUDecoder(Speculative, RunsAhead, ReadsAll, Leaves):
    """Runs packed weights. A row's scores are equal bit for bit alone, in any batch and in any pieces.

    Keys and values lie in memory as `cache` says; a live row has one slot of them.
    """

    can_cut = True  # a window limits what is seen, not what is kept

    def __init__(self, packed: Packed, capacity: int | None = None, threads: int = 1, cache: str = "float32") -> None:
        """`capacity`: tokens a row may hold, at most the model's context length, which is the default.

        `cache`, one of `cache.CACHES`: the number type of keys and values. `NotImplementedError` for one that this CPU
        lacks.
        """
        if cache == "float16" and not has_float16():
            raise NotImplementedError("this CPU has no instructions for float16: keep the cache in float32")
        self._cache = cache
        self._config, self._weights, self._offset = packed.config, packed.weights, packed.offset
        self.fingerprint: Callable[[], str] | None = None
        """SHA-256 of what decides its scores, where they come from a file: it takes a moment."""
        self.team = Team(threads)
        self.tuner = Tuner(self.team, threads)
        """Says how many of them a step wakes."""
        self._per_token = packed.config.n_parameters()
        self._rooms: dict[tuple[int, int], Room] = {}
        self.vocab_size, self.weight_bytes = packed.config.vocab_size, packed.n_bytes
        self.context_length = min(capacity or packed.config.context_length, packed.config.context_length)
        self._keys, self._values = self._memory(0, 0)
        self._slots: list[int] = []  # of each live row
        self._free: list[int] = []
        self._lengths: list[int] = []
        keys, values = self._memory(1, self.context_length)
        self.row_bytes = keys.nbytes + values.nbytes

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values of live rows take now."""
        return self._keys.nbytes + self._values.nbytes

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> _Prefix:
        """See `Decoder`."""
        return self.read_all(tokens, after, every=False)[0]

    def read_all(
        self, tokens: Sequence[int], after: Prefix | None = None, *, every: bool = True
    ) -> tuple[_Prefix, Scores]:
        """`read`, and the scores after each of `tokens`, (n, vocab_size), or after the last alone where not `every`."""
        n_before = 0 if after is None else after.n_tokens
        n_tokens = n_before + len(tokens)
        if not tokens or n_tokens > self.context_length:
            raise ValueError(f"a prompt of {n_tokens} tokens must have from 1 to {self.context_length}")
        keys, values = self._memory(1, n_tokens)
        if after is not None:
            assert isinstance(after, _Prefix), "another decoder's prefix"
            panels = -(-n_before // PANEL)
            keys[:, :, :, :panels] = after.keys[:, :, :, :panels]
            values[:, :, :, :n_before] = after.values[:, :, :, :n_before]
        blocks = np.array([*range(0, len(tokens), _ROWS), len(tokens)])
        positions = np.arange(n_before, n_tokens)
        last = np.arange(0 if every else len(tokens) - 1, len(tokens))
        scores = self._forward(tokens, np.zeros_like(positions), positions, blocks, last, keys, values)
        return _Prefix(n_tokens, scores[-1], keys, values), scores

    def scores_of(self, window: Sequence[int]) -> Iterator[tuple[int, Scores]]:
        """Scores after every token of a text that fits the context, in pieces: (where one begins, (n, vocab_size))."""
        after = None
        for start in range(0, len(window), _PIECE):
            after, scores = self.read_all(window[start : start + _PIECE], after)
            yield start, scores

    def join(self, prefix: Prefix) -> None:
        """See `Decoder`."""
        assert isinstance(prefix, _Prefix), "another decoder's prefix"
        self._make_room(1, prefix.n_tokens)
        slot, n = self._free.pop(), prefix.n_tokens
        panels = -(-n // PANEL)
        self._keys[:, slot, :, :panels] = prefix.keys[:, 0, :, :panels]
        self._values[:, slot, :, :n] = prefix.values[:, 0, :, :n]
        self._slots.append(slot)
        self._lengths.append(n)

    def left_by(self, row: int, n_tokens: int) -> _Prefix:
        """See `Leaves`."""
        slot, panels = self._slots[row], -(-n_tokens // PANEL)
        keys, values = self._memory(1, n_tokens)
        keys[:, 0, :, :panels] = self._keys[:, slot, :, :panels]
        values[:, 0, :, :n_tokens] = self._values[:, slot, :, :n_tokens]
        return _Prefix(n_tokens, None, keys, values)

    def step(self, tokens: Sequence[int]) -> Scores:
        """See `Decoder`."""
        return self._steps(tokens, NO_DRAWS)

    def run(self, tokens: Sequence[int], draws: Sequence[Draw]) -> tuple[list[list[int]], Scores]:
        """See `RunsAhead`."""
        if self.tuner.measuring:  # what takes many steps would be measured over a whole text
            most = max(MEASURED_AHEAD, ALONE // self._per_token)
            draws = [dataclasses.replace(draw, uniforms=draw.uniforms[:most]) for draw in draws]
        wanted = new_draws(draws, self.vocab_size)
        scores = self._steps(tokens, wanted)
        return wanted.tokens[: self._n_drawn(wanted)].T.tolist(), scores

    def _steps(self, tokens: Sequence[int], draws: Draws) -> Scores:
        """A step, and one more for each token that each row draws."""
        if len(tokens) != len(self._slots):
            raise ValueError(f"{len(tokens)} tokens for {len(self._slots)} live rows: give one for each")
        longest = max(self._lengths) + 1 + len(draws.tokens)
        if longest > self.context_length:
            raise ValueError(f"a row of {longest} tokens exceeds the {self.context_length} that it may hold")
        self._make_room(0, longest)
        rows = np.arange(len(tokens))
        where = np.array(self._slots), np.array(self._lengths), np.arange(len(tokens) + 1), rows
        scores = self._forward(tokens, *where, self._keys, self._values, draws)
        n_new = 1 + self._n_drawn(draws)
        self._lengths = [length + n_new for length in self._lengths]
        return scores

    @staticmethod
    def _n_drawn(draws: Draws) -> int:
        """Tokens that each row has drawn."""
        return int((draws.tokens != NONE).all(axis=1).cumprod().sum())

    def extend(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """See `Speculative`."""
        after = [n + len(new) for n, new in zip(self._lengths, tokens, strict=True)]
        if max(after) > self.context_length:
            raise ValueError(f"a row of {max(after)} tokens exceeds the {self.context_length} that it may hold")
        self._make_room(0, max(after))
        flat: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        for slot, n, new in zip(self._slots, self._lengths, tokens, strict=True):
            blocks += range(len(flat), len(flat) + len(new), _ROWS)
            flat += new
            slots += [slot] * len(new)
            positions += range(n, n + len(new))
        blocks.append(len(flat))
        where = np.array(slots), np.array(positions), np.array(blocks)
        scores = self._forward(flat, *where, np.arange(len(flat)), self._keys, self._values)
        self._lengths = after
        return scores

    def cut(self, row: int, n_tokens: int) -> None:
        """See `Speculative`."""
        self._lengths[row] = n_tokens

    def drop(self, row: int) -> None:
        """See `Decoder`."""
        self._free.append(self._slots[row])
        for of_rows in (self._slots, self._lengths):
            of_rows[row] = of_rows[-1]
            of_rows.pop()

    def rest(self) -> None:
        """See `Decoder`."""
        if not self._slots:
            self._keys, self._values = self._memory(0, 0)
            self._free = []

    def _forward(
        self,
        tokens: Sequence[int],
        slots: Array,
        positions: Array,
        blocks: Array,
        last: Array,
        keys: Array,
        values: Array,
        draws: Draws = NO_DRAWS,
    ) -> Scores:
        config, size = self._config, (len(tokens), len(last))
        room = self._rooms.get(size)
        if room is None:
            room = new_room(config, *size)
            if len(self._rooms) < _ROOMS and size[0] <= _SMALL:
                self._rooms[size] = room
        scores = np.empty((len(last), filled(config.vocab_size)), np.float32)
        arguments = (
            new_phases(n_phases(config), 1 + len(draws.tokens)), self._weights, room, config.n_heads, config.head_dim,
            config.sliding_window or config.context_length, np.float32(NORM_EPS),
            GELU_ERF if config.gelu == "erf" else GELU_TANH, self._offset,
            np.array(tokens), slots, positions, blocks, last, keys, values, scores, draws,
        )  # fmt: skip
        if len(tokens) * (1 + len(draws.tokens)) * self._per_token < ALONE:
            forward(*arguments)
        else:
            self.tuner.run(len(tokens), lambda: 1 + self._n_drawn(draws), forward, *arguments)
        return scores[:, : config.vocab_size]

    def _memory(self, n_slots: int, n_tokens: int) -> tuple[Array, Array]:
        """Room for the keys and values of so many rows and tokens."""
        config = self._config
        return new_cache(self._cache, config.n_layers, n_slots, config.n_heads, n_tokens, config.head_dim)

    def _make_room(self, n_more: int, n_tokens: int) -> None:
        """For more rows, and for rows of so many tokens: twice as many where they do not fit, so it is seldom done."""
        n_slots, capacity = self._keys.shape[1], self._values.shape[3]
        slots = max(2 * n_slots, n_more) if n_more > len(self._free) else n_slots
        if n_tokens > capacity:
            capacity = min(self.context_length, max(2 * capacity, n_tokens, _LEAST))
        elif slots == n_slots:
            return
        keys, values = self._memory(slots, capacity)
        used = max(self._lengths, default=0)
        panels = -(-used // PANEL)
        keys[:, :n_slots, :, :panels] = self._keys[:, :, :, :panels]
        values[:, :n_slots, :, :used] = self._values[:, :, :, :used]
        self._keys, self._values = keys, values
        self._free += range(n_slots, slots)
