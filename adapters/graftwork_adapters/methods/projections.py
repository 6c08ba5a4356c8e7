"""Random projections that all modules of a file, and all files of a seed, have in common."""

import torch
from torch import Tensor

from graftwork_adapters.errors import InvalidArtifact, RankOverCap
from graftwork_adapters.methods.base import LoweringInput
from graftwork_adapters.methods.weight_file import PREFIX

# Adapters share the memory of projections, so their rank may be larger than others'.
_RANK_FACTOR = 16


def check_projection_rank(rank: int, max_rank: int) -> None:
    """Raises RankOverCap for a rank that would fill memory."""
    if rank > _RANK_FACTOR * max_rank:
        raise RankOverCap(rank, _RANK_FACTOR * max_rank, "the shared projections")


def take_projections(
    source: LoweringInput, a: str, b: str
) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """The two projections if the file holds them, and the file's other tensors.

    Some versions of PEFT write a copy for each module, which must be the same. Raises
    InvalidArtifact where save_projection says otherwise than the file.
    """
    found: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    copies: list[tuple[str, str, Tensor]] = []
    for key, tensor in source.tensors.items():
        ending = key.rpartition(".")[2]
        if ending not in {a, b}:
            others[key] = tensor
        elif key == f"base_model.{ending}":
            found[ending] = tensor
        elif key.startswith(PREFIX):
            copies.append((key, ending, tensor))
        else:
            raise InvalidArtifact(f"tensor {key[:200]!r} is none that this method knows")
    is_saved = source.config.boolean("save_projection", default=True)
    expected = {a, b} if is_saved else set()
    if found.keys() != expected or (copies and not is_saved):
        raise InvalidArtifact(
            f"save_projection is {str(is_saved).lower()} in adapter_config.json, which disagrees "
            f"with the tensors about {a} and {b}"
        )
    for key, ending, tensor in copies:
        if not torch.equal(tensor, found[ending]):
            raise InvalidArtifact(f"tensor {key[:200]!r} differs from the shared {ending}")
    return ((found[a], found[b]) if is_saved else None), others
