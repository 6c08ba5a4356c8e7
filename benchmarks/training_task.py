"""What the training benchmarks share: SMS spam as a snapshot, and plain TRL + PEFT on it."""

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from graftwork_server.base_model import BaseModel
from graftwork_server.config import load_settings
from graftwork_server.serve import load_base
from graftwork_trainer.base.model import load_training_base
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.run import TrainingRun, read_summary
from graftwork_trainer.recipes.sft import train_sft
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from benchmarks.sms_spam import load_messages, split
from benchmarks.workload import ALL_LINEAR

RANK = 16
LEARNING_RATE = 5e-4
INSTRUCTION = "Is this text message spam or ham? Answer with one word."


@dataclass(frozen=True, slots=True)
class Job:
    """One training, the same for whoever does it."""

    num_examples: int
    batch_size: int
    seed: int = 0
    max_length: int = 512

    @property
    def steps(self) -> int:
        return -(-self.num_examples // self.batch_size)


@dataclass(frozen=True, slots=True)
class Outcome:
    tokens_per_second: float  # of the batches, without padding
    first_loss: float
    final_loss: float  # mean of the last tenth of the steps
    seconds: float


def write_snapshot(job: Job, path: Path) -> Path:
    """The job's examples as the trainer reads them."""
    _, messages = split(load_messages(), num_test=400, num_train=job.num_examples)
    lines = [
        {
            "format": "classification",
            "id": str(index),
            "task": "sms",
            "prompt": {"messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{m.text}"}]},
            "completion": m.label,
        }
        for index, m in enumerate(messages)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def train_with_trl(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    snapshot: Path,
    folder: Path,
) -> Outcome:
    """Plain TRL and PEFT, in float32, without gradient checkpointing, which would slow it."""
    examples = [json.loads(line) for line in snapshot.read_text().splitlines()]
    rows = [
        {
            "prompt": tokenizer.apply_chat_template(
                example["prompt"]["messages"], tokenize=False, add_generation_prompt=True
            ),
            "completion": example["completion"] + str(tokenizer.eos_token),
        }
        for example in examples
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(job, folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"
        ),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in logs]
    last = losses[-max(1, len(losses) // 10) :]
    return Outcome(
        tokens_per_second=logs[-1]["num_tokens"] / seconds,
        first_loss=losses[0],
        final_loss=sum(last) / len(last),
        seconds=seconds,
    )


def _arguments(job: Job, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": job.batch_size,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": math.ceil(0.05 * job.steps),
        "seed": job.seed,
        "data_seed": job.seed,
        "max_length": job.max_length,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "activation_checkpointing": False,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def serve_base(quantization: str, data_dir: Path) -> tuple[int, BaseModel]:
    """Bytes of the quantized weights, and the default model as a server holds it."""
    settings = load_settings(
        None,
        {"data_dir": str(data_dir), "model": {"quantization": quantization}},
        environment={},
    )
    base = load_base(settings)
    return base.weight_bytes, base


def train_with_graftwork(job: Job, quantization: str, snapshot: Path, folder: Path) -> Outcome:
    """The recipe, over the base's file, which is written first."""
    _, base = serve_base(quantization, folder / "data")
    file = folder / "data" / "base" / base.digest.removeprefix("sha256:")
    return train_over_file(job, file, snapshot, folder)


def train_over_file(job: Job, base: Path, snapshot: Path, folder: Path) -> Outcome:
    """The recipe, over the base's file."""
    losses: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = TrainingRun(
            base=load_training_base(base),
            train=snapshot,
            folder=Path(scratch),
            hyperparameters=Hyperparameters(
                learning_rate=LEARNING_RATE,
                batch_size=job.batch_size,
                max_length=job.max_length,
                seed=job.seed,
                warmup=0.05,
            ),
            method_config={"r": RANK, "lora_alpha": 2 * RANK},
            progress=lambda progress: losses.append(progress.loss),
        )
        train_sft(run)
        summary = read_summary(run.folder)
    return Outcome(
        tokens_per_second=summary.tokens / summary.seconds,
        first_loss=losses[0],
        final_loss=summary.train_loss,
        seconds=summary.seconds,
    )


def private_model(base: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model for plain TRL with the file's quantized weights, in memory of its own."""
    loaded = load_training_base(base)
    model = loaded.model
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.detach().clone()
    model.set_attn_implementation("sdpa")
    return model, loaded.tokenizer
