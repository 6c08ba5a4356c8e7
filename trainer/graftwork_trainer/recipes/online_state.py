"""What an online run goes on from: one checkpoint after each iteration."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from graftwork_trainer.recipes.checkpoints import complete, last_checkpoint

_WEIGHTS_FILE = "trained.safetensors"
_OPTIMIZER_FILE = "optimizer.pt"
_STATE_FILE = "state.json"


@dataclass(slots=True)
class OnlineState:
    """All that changes from iteration to iteration, beside weights and optimizer."""

    iteration: int = 0  # those that are done
    kl_coefficient: float = 0.0
    has_moved: bool = False  # an optimizer step was made, so that the adapter is not the base
    num_idle: int = 0  # iterations in a row in which all answers were worth the same
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # the metrics of each iteration


def save_state(
    folder: Path, state: OnlineState, trained: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes a checkpoint below `folder` and removes the one before it."""
    before = last_checkpoint(folder) if folder.exists() else None
    target = folder / f"checkpoint-{state.iteration}"
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach() for name, p in _trained(trained).items()}
    save_file(tensors, target / _WEIGHTS_FILE)
    torch.save(optimizer.state_dict(), target / _OPTIMIZER_FILE)
    (target / _STATE_FILE).write_text(json.dumps(asdict(state)))
    complete(target)
    if before is not None and before != target:
        shutil.rmtree(before)


def load_state(
    folder: Path, trained: nn.Module, optimizer: torch.optim.Optimizer
) -> OnlineState | None:
    """Puts the last whole checkpoint into module and optimizer; None where there is none."""
    found = last_checkpoint(folder) if folder.exists() else None
    if found is None:
        return None
    saved, parameters = load_file(found / _WEIGHTS_FILE), _trained(trained)
    if saved.keys() != parameters.keys():
        raise ValueError(f"{found} is of another adapter: remove it")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    optimizer.load_state_dict(torch.load(found / _OPTIMIZER_FILE, weights_only=True))
    return OnlineState(**json.loads((found / _STATE_FILE).read_text()))


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
