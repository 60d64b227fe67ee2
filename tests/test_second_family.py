"""Another family is a second file: a model with rotary positions, RMSNorm, grouped heads and a gated feed-forward
network trains through the same objective and decodes through the same cache, and no module of the package knows it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder
from glassgpt.kv_cache import CachePass, KVCache, LayerCache
from glassgpt.language_model import LanguageModel
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.optimizer import build_optimizers
from glassgpt.training.settings import Settings
from glassgpt.training.step import take_step

D, HEADS, KV_HEADS, LAYERS, CONTEXT, VOCAB = 32, 4, 2, 2, 24, 50
HEAD_DIM = D // HEADS


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """(B, H, T, head_dim) turned by (1 or B, T) positions (Su et al. 2021)."""
    rates = 10_000 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = positions[:, None, :, None] * rates  # (B, 1, T, head_dim / 2)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, KV_HEADS * HEAD_DIM, bias=False)
        self.value = nn.Linear(D, KV_HEADS * HEAD_DIM, bias=False)
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, cached: LayerCache | None) -> Tensor:
        B, T, _ = x.shape
        positions = torch.arange(T)[None] if cached is None else cached.positions
        queries = rotated(self.query(x).view(B, T, HEADS, HEAD_DIM).transpose(1, 2), positions)
        keys = rotated(self.key(x).view(B, T, KV_HEADS, HEAD_DIM).transpose(1, 2), positions)
        values = self.value(x).view(B, T, KV_HEADS, HEAD_DIM).transpose(1, 2)
        mask = None
        if cached is not None:
            keys, values = cached.extend(keys, values)
            mask = cached.mask
        keys, values = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (keys, values))
        context = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None and T > 1)
        return self.out(context.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(D), nn.RMSNorm(D)
        self.att = Attention()
        self.gate, self.up = nn.Linear(D, 2 * D, bias=False), nn.Linear(D, 2 * D, bias=False)
        self.down = nn.Linear(2 * D, D, bias=False)

    def forward(self, x: Tensor, cached: LayerCache | None) -> Tensor:
        x = x + self.att(self.norm1(x), cached)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Modern(LanguageModel):
    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.window = VOCAB, CONTEXT, None
        self.embedding = nn.Embedding(VOCAB, D)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(D)
        self.out_head = nn.Linear(D, VOCAB, bias=False)

    def forward(self, in_idx: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        if cache is None:
            return self.out_head(self.hidden(in_idx, last_only=last_only))
        cached = cache.begin(*in_idx.shape)
        hidden = self.hidden(in_idx, cached, last_only=last_only)
        cached.commit()
        return self.out_head(hidden)

    def hidden(self, in_idx: Tensor, cached: CachePass | None = None, *, last_only: bool = False) -> Tensor:
        x = self.embedding(in_idx)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cached is None else cached.layer(i))
        return self.norm(x[:, -1:] if last_only else x)

    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        return KVCache.allocate(LAYERS, KV_HEADS, HEAD_DIM, capacity=capacity or CONTEXT, batch_size=batch_size)

    def parameter_roles(self) -> dict[str, str]:
        def role(name: str) -> str:
            if "norm" in name:
                return "scale"
            ends = {"embedding.weight": "embedding", "out_head.weight": "head"}
            return ends.get(name, "residual" if name.endswith(("att.out.weight", "down.weight")) else "hidden")

        return {name: role(name) for name, _ in self.named_parameters()}


@pytest.fixture
def model() -> Modern:
    torch.manual_seed(123)
    return Modern()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_trains(model: Modern, optimizer: str) -> None:
    settings = Settings(steps=60, warmup_steps=5, optimizer=optimizer, learning_rate=3e-3, batch_size=4).resolved(60)
    objective, optimizers = NextTokenLoss(model.train()), build_optimizers(model, settings)
    ids = torch.arange(CONTEXT + 1).repeat(4, 1) * 7 % VOCAB
    losses = [take_step(objective, optimizers, (ids[:, :-1], ids[:, 1:]), step, settings)[0] for step in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_cache_changes_nothing(model: Modern) -> None:
    """Rows of unequal length that join and leave: within 1e-5 of recomputing everything, at every step."""
    cached, naive = CachedDecoder(model), NaiveDecoder(model)
    for decoder in (cached, naive):
        decoder.add([[1, 2, 3], [4]])
    for step in range(12):
        if step == 4:
            new = [d.add([[5, 6, 7, 8, 9]]) for d in (cached, naive)]
            assert abs(new[0] - new[1]).max() < 1e-5
        if step == 8:
            for decoder in (cached, naive):
                decoder.drop(0)
        rows = 2 if step < 4 or step >= 8 else 3
        tokens = [(11 * step + 3 * row) % VOCAB for row in range(rows)]
        assert abs(cached.step(tokens) - naive.step(tokens)).max() < 1e-5
