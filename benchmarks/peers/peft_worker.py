"""PEFT's mixed batches over transformers' `generate`, the tokens timed as they are chosen.

python -m benchmarks.peers.peft_worker MODEL DTYPE ADAPTER [ADAPTER ...]
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria
from transformers.utils import logging as transformers_logging

from benchmarks.peers.runs import Batch, Run
from benchmarks.peers.worker import private_stdout, serve


class _Clock(StoppingCriteria):
    """Notes when each step's tokens are there; stops nothing."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.BoolTensor:
        self.times.append(time.perf_counter() - self.started)
        return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]


class PeftBatches:
    """One PeftModel holds all adapters; the plain base is a model of its own, without PEFT's
    wrappers in its way."""

    def __init__(self, model: Path, dtype: torch.dtype, adapters: list[Path]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        wrapped = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.peft = PeftModel.from_pretrained(
            wrapped, adapters[0], adapter_name="a0", autocast_adapter_dtype=False
        )
        for index, folder in enumerate(adapters[1:], start=1):
            self.peft.load_adapter(folder, adapter_name=f"a{index}", autocast_adapter_dtype=False)
        self.peft.to(dtype).eval()

    def generate(self, batch: Batch) -> Run:
        inputs = self.tokenizer.pad({"input_ids": batch.prompts}, return_tensors="pt")
        options: dict[str, Any] = {"do_sample": False, "min_new_tokens": batch.new_tokens}
        chosen = set(batch.adapters)
        model = self.base if chosen == {None} else self.peft
        if len(chosen) > 1:
            options["adapter_names"] = [
                "__base__" if index is None else f"a{index}" for index in batch.adapters
            ]
        elif model is self.peft:  # one for all is faster when it is set than when it is named
            self.peft.set_adapter(f"a{batch.adapters[0]}")
        clock = _Clock()
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **options,
                max_new_tokens=batch.new_tokens,
                stopping_criteria=[clock],
            )
        token_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        return Run(token_ids, [clock.times] * len(token_ids))


def main() -> None:
    answers = private_stdout()
    transformers_logging.disable_progress_bar()
    model, dtype, *adapters = sys.argv[1:]
    batches = PeftBatches(Path(model), getattr(torch, dtype), [Path(each) for each in adapters])
    serve(batches.generate, answers)


if __name__ == "__main__":
    main()
