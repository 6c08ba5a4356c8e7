"""Graftwork against llama.cpp, vLLM and PEFT: one workload, one machine, one run.

    python -m benchmarks.bench_peers [--systems graftwork llamacpp vllm peft] [--repeats 5]
                                     [--output FOLDER]

Sixteen requests at once, about 57 prompt and 64 new tokens each, greedy, no early stop, no prefix
cache, rank-16 LoRAs on all linear layers of the default model. Start-up and loading are excluded,
prefill is included. `make peers` installs the peers. Tokens per second of

mixed          16 requests, each with a LoRA of its own
base           the same without adapters
one_lora       the same, all with one LoRA
single_stream  one request alone, decode only
prefill        a prompt of 512 tokens, to its first new token
decode16       16 requests without adapters, while all of them decode

Systems take turns, round by round, and stand still while it is another's. The first round warms up;
the figures are medians of the others. llama.cpp's last three are those of its llama-batched-bench,
without a server. The last line is JSON, by measure and system; null where a system cannot.
"""

import argparse
import contextlib
import datetime
import gc
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from graftwork_server.default_model import ensure_default_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.peers.report import Comparison, write_report
from benchmarks.peers.runs import MEASURES, Workload
from benchmarks.peers.systems import SYSTEMS, Processes, Setting, System
from benchmarks.peers.worker_process import PeerError
from benchmarks.workload import NEW_TOKENS, NUM_REQUESTS, prompts, save_lora_adapters

LONG_PROMPT = 512


@dataclass(slots=True)
class Contestant:
    system: System
    processes: Processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for peers.json and peers.png")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of vLLM and PEFT; bfloat16 needs a processor that multiplies it",
    )
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    transformers_logging.disable_progress_bar()
    model_path = ensure_default_model()
    workload = make_workload(model_path)
    with tempfile.TemporaryDirectory() as scratch:
        adapters = save_adapters(model_path, Path(scratch) / "adapters")
        setting = Setting(model_path, adapters, Path(scratch), arguments.dtype)
        comparison = compare(arguments.systems, setting, workload, arguments.repeats)
    if arguments.output:
        described = {
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "repeats": arguments.repeats,
            "dtype_of_vllm_and_peft": arguments.dtype,
        }
        write_report(comparison, arguments.output, described)
    print("tokens in common with PEFT's mixed answers:", comparison.agreement())
    print("graftwork is times:", comparison.ratios())
    print(json.dumps(comparison.table()))


def make_workload(model_path: Path) -> Workload:
    """The same prompts in every run."""
    rows = prompts(AutoTokenizer.from_pretrained(model_path))
    long_prompt = [token for row in rows for token in row][:LONG_PROMPT]
    return Workload(rows, long_prompt, NUM_REQUESTS, NEW_TOKENS)


def save_adapters(model_path: Path, folder: Path) -> list[Path]:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    adapters = save_lora_adapters(model, folder)
    del model
    gc.collect()
    return adapters


def compare(names: list[str], setting: Setting, workload: Workload, repeats: int) -> Comparison:
    """Starts the systems, then lets them take turns."""
    comparison = Comparison({name: [] for name in names})
    contestants: dict[str, Contestant] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            processes = Processes()
            try:
                system = stack.enter_context(SYSTEMS[name](setting))
            except PeerError as error:
                comparison.reasons[name] = str(error)
                print(f"{name} is not measured: {error}", flush=True)
                continue
            processes.suspend()
            stack.callback(processes.resume)
            contestants[name] = Contestant(system, processes)
        for repeat in range(repeats + 1):
            for name in list(contestants):
                if not take_turn(comparison, name, contestants[name], workload, repeat):
                    del contestants[name]
    return comparison


def take_turn(
    comparison: Comparison, name: str, contestant: Contestant, workload: Workload, repeat: int
) -> bool:
    """One round of one system, noted unless it is the first; False where the system fails."""
    contestant.processes.resume()
    try:
        found = contestant.system.round(workload)
    except PeerError as error:
        comparison.rounds[name].clear()
        comparison.reasons[name] = str(error)
        print(f"{name} fails: {error}", flush=True)
        return False
    contestant.processes.suspend()
    if repeat:
        comparison.rounds[name].append(found)
    figures = "  ".join(f"{measure} {found.figures[measure]:6.1f}" for measure in MEASURES)
    print(f"{repeat or 'warm-up'} {name:9} {figures}", flush=True)
    return True


if __name__ == "__main__":
    main()
