"""Muon's update, and that every parameter has exactly one optimizer."""

import pytest
import torch

from glassgpt import GPTConfig, GPTModel
from glassgpt.training import optimizer as module
from glassgpt.training.optimizer import Muon, build_optimizers, orthogonalise
from glassgpt.training.settings import Settings


def model(**changes: object) -> GPTModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=16, context_length=16, emb_dim=16, n_heads=2, n_layers=2, qkv_bias=True)
    return GPTModel(GPTConfig(**{**sizes, **changes}))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group(kind: str, tied: bool) -> None:
    net = model(tie_embeddings=tied)
    optimizers = build_optimizers(net, Settings(optimizer=kind).resolved(10))
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    undecayed = {id(p) for o in optimizers for g in o.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert undecayed == {id(p) for p in net.parameters() if p.ndim == 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (1, 1, 5)])
def test_orthogonalise_flattens_the_singular_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    made = orthogonalise(matrices, dtype)
    assert made.dtype == torch.float32
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


@pytest.mark.parametrize("shape", [(2, 4, 8), (3, 16, 64), (1, 1, 5)])
def test_flat_matrices_take_the_short_way_to_the_same(shape: tuple[int, ...]) -> None:
    """The same quintic, by X X^T alone: also where singular values lie six orders of magnitude apart."""
    torch.manual_seed(3)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = u @ torch.diag_embed(torch.logspace(0, -6, shape[1]).expand(shape[0], -1)) @ v
    for matrices, tolerance in ((torch.randn(shape), 1e-5), (spread, 1e-3)):
        wanted = matrices.double() / (matrices.double().norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = wanted @ wanted.mT
            wanted = 3.4445 * wanted + (-4.7750 * gram + 2.0315 * gram @ gram) @ wanted
        torch.testing.assert_close(orthogonalise(matrices), wanted.float(), rtol=0, atol=tolerance)


def test_settings_decide_muons_momentum() -> None:
    muon, _ = build_optimizers(model(), Settings(muon_momentum=0.8).resolved(10))
    assert muon.param_groups[0]["momentum"] == 0.8


def test_muon_refuses_what_is_not_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"^Muon takes matrices only, got shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_muons_memory_is_bounded_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many matrices share a shape, few are in one product, and each update is the same."""
    sizes = []

    def recording(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        sizes.append(len(matrices))
        return orthogonalise(matrices, dtype)

    updated = []
    monkeypatch.setattr(module, "orthogonalise", recording)
    for limit in (2**24, 2 * 32 + 1, 1):
        monkeypatch.setattr(module, "_MAX_STACK", limit)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(4, 8)) for _ in range(5)]
        for p in params:
            p.grad = torch.randn_like(p)
        Muon(params).step()
        updated.append(torch.stack([p.detach() for p in params]))
    assert sizes == [5, 2, 2, 1, 1, 1, 1, 1, 1]
    for other in updated[1:]:
        torch.testing.assert_close(other, updated[0], rtol=1e-5, atol=1e-6)


def test_frozen_parameters_have_no_optimizer() -> None:
    net = model()
    roles = net.parameter_roles()
    for name, p in net.named_parameters():
        p.requires_grad_(roles[name] in ("hidden", "residual"))
    (muon,) = build_optimizers(net, Settings().resolved(10))
    assert isinstance(muon, Muon)
    with pytest.raises(ValueError, match="all are frozen"):
        build_optimizers(net.requires_grad_(False), Settings().resolved(10))
