"""Where a training run begins: the initial weights."""

import math

import pytest
import torch

from glassgpt import GPTConfig
from glassgpt.training.build import initial_model, ready
from glassgpt.training.settings import Settings

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


def test_activation_checkpointing_changes_no_number_and_keeps_less() -> None:
    ids = torch.randint(0, 300, (2, 33))
    found = []
    for checkpointing in (False, True):
        settings = Settings(activation_checkpointing=checkpointing).resolved(10)
        trainee = ready(initial_model(CONFIG.replace(drop_rate=0.2), seed=1), settings)
        kept: set[int] = set()

        def keep(tensor: torch.Tensor, kept: set[int] = kept) -> torch.Tensor:
            kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = trainee.objective(ids[:, :-1], ids[:, 1:])
        n_kept = len(kept)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in trainee.model.parameters()], n_kept))
        assert not any(name.endswith("forward") for name in trainee.model.state_dict())
    (plain, gradients, many), (again, same, few) = found
    assert torch.equal(plain, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert few < many / 3
