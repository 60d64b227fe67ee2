"""From a config to something that trains: the one place where starting weights and techniques go in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from glassgpt.config import GPTConfig
from glassgpt.language_model import seeded
from glassgpt.model import GPTModel
from glassgpt.training.compiled import CompiledOrPlain
from glassgpt.training.layers import use_quick_layers
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.optimizer import build_optimizers
from glassgpt.training.settings import Settings
from glassgpt.training.shards import is_sharded
from glassgpt.weights.families.state import build_model


@dataclasses.dataclass
class Trainee:
    """A model, what is minimised, and what does it.

    A technique wraps `objective` (to compile, checkpoint or distribute it) and leaves `model` plain: that is what is
    measured, sampled from and saved.
    """

    model: GPTModel
    objective: NextTokenLoss
    optimizers: list[torch.optim.Optimizer]

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the model, so that all ranks must take part in what is done with it."""
        return is_sharded(self.optimizers[0].param_groups[0]["params"][0])


def build(config: GPTConfig, settings: Settings, device: torch.device, start: GPTModel | None = None) -> Trainee:
    """A model ready for step 0: one that has learned nothing, or a copy of `start` under `config`."""
    model = initial_model(config, settings.seed) if start is None else with_config(start, config)
    return ready(model.to(device), settings)


def ready(
    model: GPTModel,
    settings: Settings,
    *,
    device: torch.device | None = None,
    transform: Callable[[NextTokenLoss], None] = lambda _: None,
) -> Trainee:
    """A model with weights, from wherever they are, in `train` mode and with new optimizers.

    Parameters whose role is in `settings.freeze` keep their values: they get neither gradient nor optimizer.
    `transform` may put others in their place, as sharding does, on another `device`, before there are optimizers.
    """
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(roles[name] not in settings.freeze)
    if (device or model.device).type == "cpu":
        use_quick_layers(model)
    if settings.activation_checkpointing:
        for block in model.trf_blocks:
            setattr(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010
    objective = NextTokenLoss(model.train())
    transform(objective)
    if settings.compile:
        objective.compiled = CompiledOrPlain(model.hidden)
    return Trainee(model, objective, build_optimizers(model, settings))


def with_config(model: GPTModel, config: GPTConfig) -> GPTModel:
    """A float32 copy of a model under a config that may have fewer positions, another dropout or attention."""
    state = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in model.state_dict().items()}
    state["pos_emb.weight"] = state["pos_emb.weight"][: config.context_length].clone()
    return build_model(config, state)


def initial_model(config: GPTConfig, seed: int) -> GPTModel:
    """A new model with GPT-2's initialisation, in `train` mode.

    Normal with standard deviation 0.02, and 0.02 / sqrt(2 layers) for the two matrices that write into the shortcut,
    so that the first loss is ln(vocab_size) (Radford et al. 2019). The book's, PyTorch's default, starts far above.
    """
    with seeded(seed), torch.no_grad():
        model = GPTModel(config)
        roles = model.parameter_roles()
        for name, parameter in model.named_parameters():
            if roles[name] == "residual":
                parameter.normal_(0, 0.02 / (2 * config.n_layers) ** 0.5)
            elif roles[name] == "bias":
                parameter.zero_()
            elif roles[name] != "scale":  # the norms begin with factors of 1
                parameter.normal_(0, 0.02)
    return model.train()
