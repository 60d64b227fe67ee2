"""FSDP: each rank holds a part of every weight, its gradient and its optimizer state, by rows.

Before a block is computed its weights are gathered from all ranks, and freed afterwards; in the backward pass its
gradients are added up over the ranks, each of which keeps its own rows (Zhao et al., 2023; PyTorch's `fully_shard`).
What is specific to it is here: the rest of `training` handles sharded tensors as it does others, and asks `local` for
the rows of this rank. PyTorch's modules for it take a second to import, which is done only where they are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glassgpt.checkpoint import whole_weights
from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.training.objective import NextTokenLoss
from glassgpt.weights.containers.safetensors_file import SafetensorsWeights
from glassgpt.weights.families.config_json import from_config_json
from glassgpt.weights.families.gpt2_names import from_gpt2_names

_OLDEST = (2, 13)  # PyTorch, as tested
_IN_FILE = 2**24  # numbers of a rank in one file, which DCP holds in memory twice more


def check_torch(version: str = torch.__version__) -> None:
    """`ValueError` where this PyTorch lacks what is used here."""
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise ValueError(f"fsdp needs PyTorch {'.'.join(map(str, _OLDEST))} or newer, this is {version}: leave it out")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is one of PyTorch's `DTensor`s, of which each rank holds a part."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds: of one that is not sharded, itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shares(tensor: Tensor) -> int:
    """Over how many ranks the rows of a tensor are spread."""
    return tensor.device_mesh.size() if hasattr(tensor, "device_mesh") else 1


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its rows, gathered where it is sharded: all ranks must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def model_of(checkpoint: Path) -> GPTModel:
    """A model as in the directory, on the meta device: its weights have shapes and no numbers yet."""
    path = checkpoint / "config.json"
    with torch.device("meta"):
        return GPTModel(from_config_json(read_json(path), str(path)))


def shard(objective: NextTokenLoss, checkpoint: Path, device: torch.device) -> None:
    """Shard the model of `objective`, which is one of `model_of(checkpoint)`, over all ranks, with its weights.

    Each rank reads the weights one tensor at a time, and keeps its rows. Gradients become sums over all ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, Shard

    model = objective.model
    assert isinstance(model, GPTModel)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    # what is in no block, at the root: a tied embedding is used at both ends
    fully_shard(objective, mesh=mesh)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    rows = from_gpt2_names(
        SafetensorsWeights(checkpoint / "model.safetensors"),
        model.config,
        dtype=torch.float32,
        source=str(checkpoint),
        part=lambda tensor: tensor[slice(*_rows(len(tensor), dist.get_rank(), dist.get_world_size()))],
    )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(
        {
            name: DTensor.from_local(
                rows[name].to(device), mesh, [Shard(0)], run_check=False, shape=shape, stride=_strides(shape)
            )
            for name, shape in shapes.items()
        },
        assign=True,
    )
    if model.config.tie_embeddings:
        model.out_head.weight = model.tok_emb.weight


def reshard(objective: NextTokenLoss) -> None:
    """After a forward pass alone: only a backward pass frees all of the weights that were gathered."""
    for module in objective.modules():
        if callable(free := getattr(module, "reshard", None)):
            free()


def gather_weights(model: GPTModel) -> None:
    """Give rank 0, which saves the model, the rows of this one."""
    for _ in whole_weights(model, whole):
        pass


def norm_of(gradients: Sequence[Tensor], sums: Callable[[Sequence[float]], list[float]]) -> float:
    """The norm of sharded gradients, seen as one vector; `sums` are over all ranks."""
    norms = torch.stack(torch._foreach_norm([local(gradient) for gradient in gradients]))
    return float(sums([float(norms.double().square().sum())])[0] ** 0.5)


def on_whole(
    matrices: Sequence[Tensor], like: Sequence[Tensor], function: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    """This rank's rows of what `function` makes of whole matrices, which keep their shapes.

    `matrices` are this rank's rows of them, and `like` sharded tensors of their shapes. The ranks share the work: each
    gets every `world_size`-th matrix whole, in an exchange of all with all, and gives the others their rows back.
    """
    group = like[0].device_mesh.get_group()  # type: ignore[attr-defined]
    rank, n = dist.get_rank(group), dist.get_world_size(group)
    owned = [list(range(owner, len(like), n)) for owner in range(n)]

    def rows(i: int, of: int) -> int:
        start, end = _rows(len(like[i]), of, n)
        return end - start

    mine = [[matrices[i] for i in owned[owner]] for owner in range(n)]
    theirs = [[(rows(i, of), like[i].shape[1]) for i in owned[rank]] for of in range(n)]
    empty = matrices[0].new_empty(0)
    received = _exchange(mine, theirs, group, empty)
    results = function([torch.cat(pieces) for pieces in zip(*received, strict=True)])
    back = [[m[slice(*_rows(len(m), of, n))] for m in results] for of in range(n)]
    ours = [[(rows(i, rank), like[i].shape[1]) for i in owned[owner]] for owner in range(n)]
    returned = _exchange(back, ours, group, empty)
    return [returned[i % n][i // n] for i in range(len(like))]


def _exchange(
    sent: list[list[Tensor]], shapes: list[list[tuple[int, int]]], group: Any, empty: Tensor
) -> list[list[Tensor]]:
    """Send to each rank its list of matrices; some of the `shapes` come from each. `empty`: a vector of their kind."""
    sizes = [[rows * columns for rows, columns in of_rank] for of_rank in shapes]
    flat = torch.cat([empty, *(part.flatten() for of_rank in sent for part in of_rank)])
    received = empty.new_empty(sum(map(sum, sizes)))
    lengths = [sum(part.numel() for part in of_rank) for of_rank in sent]
    dist.all_to_all_single(received, flat, [sum(of_rank) for of_rank in sizes], lengths, group)
    parts = received.split([size for of_rank in sizes for size in of_rank])
    pairs = iter(zip(parts, [shape for of_rank in shapes for shape in of_rank], strict=True))
    return [[part.view(shape) for part, shape in [next(pairs) for _ in of_rank]] for of_rank in shapes]


def save_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    """Write this rank's part of the tensors into `directory`, in safetensors files of its own, by DCP.

    All ranks take part. DCP's own format has a pickled index; this one has what a file holds in its header.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    files, total = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + total // (_IN_FILE * dist.get_world_size())
        total += tensor.numel()
    if tensors:
        writer = HuggingFaceStorageWriter(str(directory), files, save_distributed=True)
        _explained(lambda: save(dict(tensors), storage_writer=writer))


def load_tensors(directory: Path, make: Callable[[str, torch.Size], Tensor]) -> dict[str, Tensor]:
    """The tensors that `save_tensors` or `write_tensors` wrote into `directory`, by any number of ranks.

    `make` gives each its place, by name and shape: a sharded one, for which all ranks must be here, or a whole one.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    described: dict[str, Any] = reader.read_metadata().state_dict_metadata
    places = {name: make(name, about.size) for name, about in described.items()}
    alone = not any(is_sharded(place) for place in places.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it should be
        if places:
            _explained(lambda: load(dict(places), storage_reader=reader, no_dist=alone))
    return places


def _explained(body: Callable[[], object]) -> None:
    """DCP's errors are of a kind that is no `Exception`, with those of all ranks: raise the first of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        body()
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        kind = OSError if isinstance(cause, OSError) else RuntimeError
        raise kind(f"rank {rank}: {cause}") from cause


def _rows(n_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first row of a tensor that a rank holds, and the one after its last, as `torch.chunk` deals them out."""
    size = -(-n_rows // world_size)
    return min(n_rows, rank * size), min(n_rows, (rank + 1) * size)


def _strides(shape: Iterable[int]) -> tuple[int, ...]:
    return torch.empty(tuple(shape), device="meta").stride()
