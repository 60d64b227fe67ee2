"""The dropout of training on a CPU: its share, its gradient, its seed."""

import pytest
import torch
from torch import nn

from glassgpt import GPTConfig
from glassgpt.training.build import initial_model, ready
from glassgpt.training.layers import QuickDropout
from glassgpt.training.settings import Settings

CONFIG = GPTConfig(vocab_size=50, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(p: float, dtype: torch.dtype) -> None:
    n = 400_000
    torch.manual_seed(1)
    out = QuickDropout(p)(torch.ones(n + 3, dtype=dtype))  # no multiple of the numbers in a random word
    dropped = int((out == 0).sum())
    assert dropped == pytest.approx(p * n, abs=5 * (p * (1 - p) * n) ** 0.5)
    kept = out[out != 0]
    assert (kept == kept[0]).all()
    assert float(kept[0]) == pytest.approx(1 / (1 - p), rel=2**-8)


def test_neighbours_and_distant_numbers_are_dropped_independently() -> None:
    torch.manual_seed(2)
    dropped = (QuickDropout(0.5)(torch.ones(200_000)) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8, 4096):
        assert abs(float((dropped[distance:] * dropped[:-distance]).mean())) < 0.25 * 5 / 200_000**0.5


def test_the_gradient_goes_where_the_value_went() -> None:
    x = torch.randn(5, 7, 6).transpose(0, 1).requires_grad_()
    out = QuickDropout(0.3)(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * grad)
    assert grad.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]


def test_a_seed_decides_the_mask_whatever_the_number_of_threads() -> None:
    found = []
    before = torch.get_num_threads()
    for seed, threads in ((1, 1), (1, 2), (2, 2)):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        found.append(QuickDropout(0.5)(torch.ones(100_000)))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_every_dropout_of_a_trainee_is_quick_and_evaluation_has_none() -> None:
    plain = initial_model(CONFIG, 1)
    model = ready(initial_model(CONFIG, 1), Settings().resolved(10)).model
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(layers) == 1 + 2 * CONFIG.n_layers
    assert all(type(layer) is QuickDropout and layer.p == 0.25 for layer in layers)
    assert model.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(0, 50, (2, 16))
    assert not torch.equal(model(ids), plain(ids))
    assert torch.equal(model.eval()(ids), plain.eval()(ids))
