"""What every container gives: tensors by name, read when asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

Stored = TypeVar("Stored")


class TensorSource(Mapping[str, Tensor]):
    """Tensors by name. A model is made of them one at a time, so that its weights are never in memory twice."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""

    def take(self, name: str) -> Tensor:
        """A tensor that the source does not hold any longer."""
        return self[name]


class InMemory(TensorSource):
    """The tensors of a dict, which `take` empties."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def take(self, name: str) -> Tensor:
        """A tensor, no longer held here."""
        return self._tensors.pop(name)


class OnDemand(TensorSource):
    """Whatever is stored under each name, made a tensor by `read`, with the shape that `shape` says."""

    def __init__(
        self,
        stored: Mapping[str, Stored],
        read: Callable[[Stored], Tensor],
        shape: Callable[[Stored], Sequence[int]],
    ) -> None:
        self._names = tuple(stored)
        self._read: Callable[[str], Tensor] = lambda name: read(stored[name])
        self._shape: Callable[[str], Sequence[int]] = lambda name: shape(stored[name])

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return tuple(self._shape(name))
