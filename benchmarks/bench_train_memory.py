"""Memory of training: what a trainer takes beside a server, and what plain TRL takes on its own.

    python -m benchmarks.bench_train_memory [--examples 24] [--batch-size 8] [--quantization int8]

The same job on the same quantized weights of the default model: rank-16 LoRA on all linear modules.

- beside: a process that serves the base, and a trainer process over the file that it maps;
- alone: the same server without a trainer, and plain TRL + PEFT in a process of its own, whose
  model holds the quantized weights privately and multiplies by them as ours does.

What is compared is PSS, proportional set size: a page that two processes map counts half in each.
Each figure is the largest sum seen in samples of ten a second. The last line is JSON, in MiB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.server_process import pss_bytes

SIDES = ("server", "graftwork", "trl")
_READY = "ready"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quantization", choices=("int8", "nf4"), default="int8")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments.folder = Path(scratch)
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    server = start(arguments, "server")
    try:
        weights = int((server.stdout.readline() if server.stdout else "").split()[-1])
        alone = pss(server.pid)
        beside = largest_while_training(arguments, "graftwork", server.pid)
        trl = largest_while_training(arguments, "trl", None)
    finally:
        if server.stdin:
            server.stdin.close()  # it serves until then
        server.wait(timeout=60)
    saved = alone + trl - beside
    print(f"server alone {alone >> 20} MiB, with trainer {beside >> 20} MiB")
    print(f"plain TRL on its own {trl >> 20} MiB; quantized weights {weights >> 20} MiB")
    print(
        json.dumps(
            {
                "server": alone >> 20,
                "server_and_trainer": beside >> 20,
                "trl": trl >> 20,
                "saved": saved >> 20,
                "weights": weights >> 20,
                "saves_the_weights": saved >= weights,
            }
        )
    )


def start(arguments: argparse.Namespace, side: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.bench_train_memory", "--side", side]
    command += ["--folder", str(arguments.folder), "--quantization", arguments.quantization]
    command += ["--examples", str(arguments.examples), "--batch-size", str(arguments.batch_size)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def largest_while_training(arguments: argparse.Namespace, side: str, server: int | None) -> int:
    """The largest PSS of the side's process and the server's together, in bytes."""
    trainer = start(arguments, side)
    largest = 0

    def sample() -> None:
        nonlocal largest
        while trainer.poll() is None:
            pids = [trainer.pid] if server is None else [trainer.pid, server]
            largest = max(largest, sum(pss(pid) for pid in pids))
            time.sleep(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = trainer.communicate()
    sampler.join()
    if trainer.returncode:
        raise RuntimeError(f"the {side} side failed")
    print(f"{side}: {output.splitlines()[-1]}", flush=True)
    return largest


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 once the process is gone."""
    try:
        return pss_bytes(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def run_side(arguments: argparse.Namespace) -> None:
    """One process of the comparison."""
    from benchmarks import training_task as task  # noqa: PLC0415 - seconds, after --help

    if arguments.side == "server":
        weights, _keep = task.serve_base(arguments.quantization, arguments.folder / "data")
        print(_READY, weights, flush=True)
        sys.stdin.read()
        return
    job = task.Job(arguments.examples, arguments.batch_size)
    snapshot = task.write_snapshot(job, arguments.folder / "train.jsonl")
    [base] = (arguments.folder / "data" / "base").iterdir()
    if arguments.side == "graftwork":
        outcome = task.train_over_file(job, base, snapshot, arguments.folder)
    else:
        model, tokenizer = task.private_model(base)
        outcome = task.train_with_trl(job, model, tokenizer, snapshot, arguments.folder / "trl")
    print(json.dumps({"final_loss": round(outcome.final_loss, 4)}))


if __name__ == "__main__":
    main()
