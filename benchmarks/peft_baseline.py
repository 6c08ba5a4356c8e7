"""PEFT's own mixed batch over transformers' generate, in fp32: the baseline."""

import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.workload import NEW_TOKENS


class PeftBaseline:
    """All adapters loaded into one PeftModel; `generate` takes one of them for each row."""

    def __init__(self, model_path: Path, adapters: list[Path]) -> None:
        base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        self.model = PeftModel.from_pretrained(base, adapters[0], adapter_name="a0")
        for index, folder in enumerate(adapters[1:], start=1):
            self.model.load_adapter(folder, adapter_name=f"a{index}")
        self.model.eval()

    def generate(self, prompts: list[list[int]], *, new_tokens: int = NEW_TOKENS) -> float:
        """Greedy, row i with adapter i; returns new tokens per second, prefill included."""
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        started = time.perf_counter()
        with torch.inference_mode():
            output = self.model.generate(
                **batch,
                adapter_names=[f"a{index}" for index in range(len(prompts))],
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
            )
        seconds = time.perf_counter() - started
        assert output.shape[1] == batch["input_ids"].shape[1] + new_tokens
        return len(prompts) * new_tokens / seconds
