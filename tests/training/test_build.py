"""Where a training run begins: the initial weights."""

import math

import pytest
import torch

from glassgpt import GPTConfig
from glassgpt.training.build import initial_model

CONFIG = GPTConfig(vocab_size=300, context_length=64, emb_dim=64, n_heads=2, n_layers=8, qkv_bias=True)


@pytest.mark.parametrize("tied", [False, True])
def test_the_initial_weights_are_gpt2s(tied: bool) -> None:
    model = initial_model(CONFIG.replace(tie_embeddings=tied), seed=3)
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        if roles[name] == "scale":
            assert (parameter == 1).all()
        elif roles[name] == "bias":
            assert (parameter == 0).all()
        else:
            wanted = 0.02 / math.sqrt(2 * 8) if roles[name] == "residual" else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.08), name
            assert abs(parameter.mean().item()) < wanted / 10


def test_a_seed_decides_the_weights_and_the_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (initial_model(CONFIG, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])
