"""What a method of adaptation is to this package: the fields it reads, and how it is lowered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from graftwork_adapters.canonical import BaseDescription, LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact, RankOverCap
from graftwork_adapters.peft_config import PeftConfig


@dataclass(frozen=True, slots=True)
class LoweringInput:
    """What a method lowers: a checked file, the base, and the server's cap."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]  # by the name in the file
    base: BaseDescription
    max_rank: int

    def check_rank(self, rank: int, module: str) -> None:
        if rank > self.max_rank:
            raise RankOverCap(rank, self.max_rank, module)


@dataclass(frozen=True, slots=True)
class Method:
    """One file of this folder, as its METHOD.

    `lower` raises InvalidArtifact where config and tensors disagree, WrongBase where they do not
    fit the base, RankOverCap. It need not look for zero effect, nor for
    what saved_parts.py takes.
    """

    peft_type: str
    consumed: frozenset[str]  # fields that `lower` reads
    lower: Callable[[LoweringInput], LoweredAdapter]
    # What PEFT puts before the base's names where it saves modules of the base.
    saved_prefix: str = "base_model.model."
    inert: Mapping[str, str] = field(default_factory=dict)  # field -> why it does not matter
    # Field -> the values that leave the arithmetic alone; any other is refused by name.
    required: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    # Ends of the names of tensors that hold integers, and of those that may have no element.
    integer_parts: tuple[str, ...] = ()
    empty_parts: tuple[str, ...] = ()

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises InvalidArtifact for a tensor of a kind that the method does not use."""
        for name, tensor in tensors.items():
            if name.endswith(self.integer_parts) == tensor.is_floating_point():
                kind = "integers" if name.endswith(self.integer_parts) else "floating point numbers"
                raise InvalidArtifact(
                    f"tensor {name[:200]!r} is {tensor.dtype}, and must hold {kind}"
                )
            if tensor.numel() == 0 and not name.endswith(self.empty_parts):
                raise InvalidArtifact(
                    f"tensor {name[:200]!r} is empty (shape {tuple(tensor.shape)})"
                )
