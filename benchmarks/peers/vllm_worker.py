"""vLLM's engine, stepped in process. Runs in vLLM's own environment.

    python -m benchmarks.peers.vllm_worker MODEL DTYPE [ADAPTER ...]

Without adapters the engine is started without LoRA, which serves the plain base faster.
"""

import os
import sys
import time

from benchmarks.peers.runs import Batch, Run
from benchmarks.peers.worker import private_stdout, serve

# Read by vLLM when it is imported. In process, so that each step's end can be timed here and no
# engine process of its own waits actively.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
os.environ["VLLM_NO_USAGE_STATS"] = "1"

MAX_ROWS = 16


class VllmEngine:
    def __init__(self, model: str, dtype: str, adapters: list[str]) -> None:
        from vllm import EngineArgs, LLMEngine  # noqa: PLC0415 - after the environment is set
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        lora = {"max_loras": len(adapters), "max_lora_rank": 16} if adapters else {}
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=model,
                dtype=dtype,
                max_model_len=1024,
                max_num_seqs=MAX_ROWS,
                enable_prefix_caching=False,
                enable_lora=bool(adapters),
                **lora,
            )
        )
        # vLLM counts adapters from 1.
        self.adapters = [
            LoRARequest(f"a{index}", index + 1, folder) for index, folder in enumerate(adapters)
        ]
        for adapter in self.adapters:
            self.engine.add_lora(adapter)
        self.num_batches = 0

    def generate(self, batch: Batch) -> Run:
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        sampling = SamplingParams(
            temperature=0,
            max_tokens=batch.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.num_batches += 1
        rows = {f"{self.num_batches}-{row}": row for row in range(len(batch.prompts))}
        token_ids: list[list[int]] = [[] for _ in rows]
        arrivals: list[list[float]] = [[] for _ in rows]
        started = time.perf_counter()
        for name, row in rows.items():
            chosen = batch.adapters[row]
            self.engine.add_request(
                name,
                {"prompt_token_ids": batch.prompts[row]},
                sampling,
                lora_request=None if chosen is None else self.adapters[chosen],
            )
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                new = list(output.outputs[0].token_ids)
                row = rows[output.request_id]
                token_ids[row] += new
                arrivals[row] += [time.perf_counter() - started] * len(new)
        return Run(token_ids, arrivals)


def main() -> None:
    answers = private_stdout()
    model, dtype, *adapters = sys.argv[1:]
    serve(VllmEngine(model, dtype, adapters).generate, answers)


if __name__ == "__main__":
    main()
