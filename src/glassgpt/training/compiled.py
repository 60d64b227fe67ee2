"""`torch.compile` in training, and the plain function where it fails."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


class CompiledOrPlain:
    """A function of one tensor, compiled for training; evaluation, with other sizes, takes the plain one.

    The first call compiles. Where that fails, for want of a compiler mostly, a warning says so in one line, and the
    plain function is called from then on.
    """

    def __init__(self, plain: Callable[[Tensor], Tensor]) -> None:
        self._plain = plain
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._failed = False

    def __call__(self, x: Tensor) -> Tensor:
        """What the plain function gives, within rounding."""
        if self._failed or not torch.is_grad_enabled():
            return self._plain(x)
        if self._compiled is not None:
            return self._compiled(x)
        random = torch.get_rng_state()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's, of its own parts
                compiled = torch.compile(self._plain, dynamic=False)
                result: Tensor = compiled(x)
        except Exception as error:  # whatever PyTorch, the compiler or the linker raise
            _log.warning("torch.compile failed, training goes on without it: %s", _reason(error))
            self._failed = True
            torch.set_rng_state(random)  # as if it had not been tried
            return self._plain(x)
        self._compiled = compiled
        return result


def _reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
