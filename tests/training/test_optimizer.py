"""Roles, Muon's update, and that every parameter has exactly one optimizer."""

import pytest
import torch

from glassgpt import GPTConfig, GPTModel
from glassgpt.training.optimizer import Muon, build_optimizers, orthogonalise, parameter_roles
from glassgpt.training.settings import Settings


def model(**changes: object) -> GPTModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=16, context_length=16, emb_dim=16, n_heads=2, n_layers=2, qkv_bias=True)
    return GPTModel(GPTConfig(**{**sizes, **changes}))


def test_roles_follow_use_not_shape() -> None:
    roles = parameter_roles(model())  # vocabulary, context and width are equal: shapes tell nothing
    assert roles["tok_emb.weight"] == roles["pos_emb.weight"] == "embedding"
    assert roles["out_head.weight"] == "head"
    assert roles["trf_blocks.1.att.W_key.weight"] == roles["trf_blocks.0.ff.layers.2.weight"] == "hidden"
    assert roles["trf_blocks.0.att.W_query.bias"] == roles["final_norm.scale"] == "vector"
    assert sum(role == "hidden" for role in roles.values()) == 2 * 6
    assert "out_head.weight" not in parameter_roles(model(tie_embeddings=True))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group(kind: str, tied: bool) -> None:
    net = model(tie_embeddings=tied)
    optimizers = build_optimizers(net, Settings(optimizer=kind))
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    undecayed = {id(p) for o in optimizers for g in o.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert undecayed == {id(p) for p in net.parameters() if p.ndim == 1}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (1, 1, 5)])
def test_orthogonalise_flattens_the_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    made = orthogonalise(matrices)
    values = torch.linalg.svdvals(made)
    # random matrices' smallest singular values may stay small; all others come near 1
    assert values.max() < 1.3
    assert values[:, 0].min() > 0.6
    # the directions are those of the exact factor U V^T
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((made * (u @ v)).sum((1, 2)) / (made.norm(dim=(1, 2)) * (u @ v).norm(dim=(1, 2)))).min() > 0.95


def test_muon_equals_one_matrix_at_a_time() -> None:
    """The batched update is that of the formula, tall and flat matrices alike, decay and momentum included."""
    torch.manual_seed(2)
    lr, momentum, decay = 0.02, 0.95, 0.1
    params = [torch.nn.Parameter(torch.randn(s)) for s in ((4, 8), (8, 4), (6, 6), (4, 8))]
    expected = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(p) for p in params]
    optimizer = Muon(params, lr=lr, momentum=momentum, weight_decay=decay)
    for _ in range(3):
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p)
            buffers[i] = momentum * buffers[i] + (1 - momentum) * p.grad
            blend = momentum * buffers[i] + (1 - momentum) * p.grad
            flat = blend if blend.shape[0] <= blend.shape[1] else blend.T
            update = orthogonalise(flat[None])[0]
            update = update if blend.shape[0] <= blend.shape[1] else update.T
            scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
            expected[i] = expected[i] * (1 - lr * decay) - lr * scale * update
        optimizer.step()
    for p, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="for matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
