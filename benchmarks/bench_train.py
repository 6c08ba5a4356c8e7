"""Training speed: Graftwork's `sft` against plain TRL + PEFT, in float32, on the same data.

    python -m benchmarks.bench_train [--examples 128] [--batch-size 8] [--repeats 2]

The default model, rank-16 LoRA on all linear modules, SMS spam, the same steps and seeds. Each
side trains in a process of its own, by turns: TRL on the float32 model; Graftwork on the same
float32 weights mapped from the base's file, and on the int8 weights that serve. Loading is not
counted. The last line is JSON: tokens per second, the ratio to TRL's, and the relative difference
of the final losses on float32 weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

SIDES = ("trl", "none", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train(arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, Path(scratch))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_train", "--side", side]
            command += ["--folder", str(folder), "--examples", str(arguments.examples)]
            command += ["--batch-size", str(arguments.batch_size)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            outcome = json.loads(output.splitlines()[-1])
            rates[side].append(outcome["tokens_per_second"])
            losses[side] = outcome["final_loss"]
            print(
                f"{side:>5}: {outcome['tokens_per_second']:6.0f} tokens/s, loss from "
                f"{outcome['first_loss']:.4f} to {outcome['final_loss']:.4f} in "
                f"{outcome['seconds']:.1f} s",
                flush=True,
            )
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(
        json.dumps(
            {
                "tokens_per_second": {side: round(rate, 1) for side, rate in medians.items()},
                "ratio": {s: round(medians[s] / medians["trl"], 3) for s in ("none", "int8")},
                "final_loss": {side: round(loss, 5) for side, loss in losses.items()},
                "loss_difference": round(abs(losses["none"] / losses["trl"] - 1), 5),
            }
        )
    )


def train(arguments: argparse.Namespace) -> dict[str, float]:
    """One side, in this process."""
    from graftwork_server.default_model import ensure_default_model  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from benchmarks import training_task as task  # noqa: PLC0415 - seconds, after --help

    transformers_logging.disable_progress_bar()
    job = task.Job(arguments.examples, arguments.batch_size)
    snapshot = task.write_snapshot(job, arguments.folder / "train.jsonl")
    if arguments.side == "trl":
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

        source = ensure_default_model()
        outcome = task.train_with_trl(
            job,
            AutoModelForCausalLM.from_pretrained(source, dtype="float32"),
            AutoTokenizer.from_pretrained(source),
            snapshot,
            arguments.folder / "trl",
        )
    else:
        outcome = task.train_with_graftwork(job, arguments.side, snapshot, arguments.folder)
    return asdict(outcome)


if __name__ == "__main__":
    main()
