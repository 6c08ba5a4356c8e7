"""Puts an adapter on a model, and saves what was trained as a folder that the server registers."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from graftwork_adapters.bottleneck import (
    BottleneckConfig,
    add_bottlenecks,
    load_bottlenecks,
    read_bottleneck_config,
    save_bottlenecks,
)
from graftwork_adapters.durable import new_folder
from graftwork_adapters.errors import AdapterError
from graftwork_adapters.folder import CONFIG_FILE, FILES, PROMPT_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.prompt_file import VersionPrompt
from graftwork_adapters.stamp import read_stamp, stamp_folder
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.methods.configure import configure
from graftwork_trainer.methods.method import TrainingMethod
from graftwork_trainer.methods.rank_allocation import RankAllocation


@dataclass(frozen=True, slots=True)
class AttachedAdapter:
    """An adapter on a model, ready to be trained."""

    model: PreTrainedModel | PeftModel  # with bottlenecks the base's own
    base: PreTrainedModel  # what `model` runs in the end
    method: TrainingMethod
    config: PeftConfig | BottleneckConfig
    initial: Path | None = None

    @property
    def num_trained(self) -> int:
        """Parameters that training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def callbacks(self) -> list[TrainerCallback]:
        """What the method has to do between steps."""
        return [RankAllocation(self.model)] if self.method.peft_type == "ADALORA" else []

    def save(self, folder: Path, base_digest: str) -> None:
        """Writes `folder`, in full or not at all; replaces what is there."""
        with new_folder(folder) as draft:
            if isinstance(self.config, BottleneckConfig):
                save_bottlenecks(self.model, self.config, draft)
            else:
                _save_peft(self.model, draft)
            stamp_folder(draft, base_digest)
            if self.initial is not None and (self.initial / PROMPT_FILE).exists():
                shutil.copy(self.initial / PROMPT_FILE, draft)
            shutil.rmtree(folder, ignore_errors=True)


def attach_adapter(
    model: PreTrainedModel,
    peft_type: str,
    method_config: Mapping[str, Any],
    *,
    frozen_layers: int,
    total_steps: int,
) -> AttachedAdapter:
    """A new adapter on `model`, which is changed in place; arguments and errors as `configure`."""
    config = configure(
        model,
        peft_type,
        method_config,
        frozen_layers=frozen_layers,
        total_steps=total_steps,
    )
    method = find_method(peft_type)
    if isinstance(config, BottleneckConfig):
        add_bottlenecks(model, config)
        return AttachedAdapter(model, model, method, config)
    try:
        tuned = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise InvalidFieldError("method_config", f"is refused: {error}") from None
    return AttachedAdapter(tuned, model, method, config)


def attach_initial(model: PreTrainedModel, folder: Path, base_digest: str) -> AttachedAdapter:
    """The adapter in `folder` on `model`, to be trained on.

    Raises InvalidFieldError naming `initial_version` where it is damaged, of another base, or
    cannot be trained further.
    """
    name = "initial_version"
    try:
        artifact = read_artifact(folder, AdapterLimits())
        stamp = read_stamp(artifact.config, artifact.metadata)
    except AdapterError as error:
        raise InvalidFieldError(name, error.message) from None
    if not artifact.has_weights:
        raise InvalidFieldError(name, "carries a prompt alone, and has no weights to go on from")
    if stamp is not None and stamp != base_digest:
        raise InvalidFieldError(
            name, f"was trained on base {stamp}, not on {base_digest}: train anew on its snapshot"
        )
    method = find_method(artifact.config.peft_type, name)
    if method.peft_type == BOTTLENECK:
        load_bottlenecks(model, folder)
        return AttachedAdapter(model, model, method, read_bottleneck_config(folder), folder)
    tuned = PeftModel.from_pretrained(model, folder, is_trainable=True)
    attached = AttachedAdapter(tuned, model, method, tuned.peft_config["default"], folder)
    if not attached.num_trained:
        raise InvalidFieldError(name, f"{method.peft_type} leaves nothing to train")
    return attached


def _save_peft(model: nn.Module, folder: Path) -> None:
    """What `save_pretrained` writes, without the paths of this machine and the model card."""
    model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    for path in folder.iterdir():
        if path.name not in FILES:
            path.unlink()
    config_path = folder / CONFIG_FILE
    fields = json.loads(config_path.read_text())
    fields["base_model_name_or_path"] = None
    config_path.write_text(json.dumps(fields, indent=2, sort_keys=True))


def carried_prompt(folder: Path | None) -> VersionPrompt | None:
    """The prompt that an adapter's folder carries."""
    return None if folder is None else read_artifact(folder, AdapterLimits()).prompt
