"""PPO, GRPO and RLOO on the default model with a reward whose optimum is known: the share of
continuations that contain a number.

    python -m benchmarks.bench_rlhf [--algorithms ppo grpo rloo] [--seeds 0] [--iterations 25]

A server answers in this process, and the trainer learns in one of its own over the same mapped
weights, as in a job. `before` and `after` are mean rewards of 320 answers at temperature 1, `kl` is
the mean divergence from the base over the last iterations, in nats for each answer, and
`sampler_gap` the largest mean difference, per token, between the engine's log-probabilities and the
trainer's. A training whose answers are all worth the same for five iterations is done. The figures
of each iteration and a plot of reward and divergence are written to --output, by default
benchmarks/results/, as rlhf-ALGORITHM-SEED. The last line is JSON by algorithm, or by algorithm and
seed where there are several.

    python -m benchmarks.bench_rlhf --kill 3 [--iterations 25]

A PPO job of a server in a process of its own, whose worker is killed (SIGKILL) at so many random
iterations while two streams come and go; and one that is left alone, with the same seed and data.
The last line is JSON: the final reward of both, and the 99th percentile of the gap between two
tokens of the streams without a job, beside the job left alone, and beside the killed one.
"""

import argparse
import asyncio
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from graftwork import AsyncClient
from graftwork_server.config import load_settings
from graftwork_server.serve import load_base, running_server, spare_long_collections
from graftwork_trainer.datasets.prompts import Text
from graftwork_trainer.rewards.checks import RegexReward
from graftwork_trainer.rollouts import RolloutSampler, RolloutSettings

from benchmarks.machine import describe_machine
from benchmarks.server_process import wait_as_served

OUTPUT = Path(__file__).parent / "results"
ALGORITHMS = ("ppo", "grpo", "rloo")
PATTERN = r"\d"
MAX_REWARD = 1.0
MAX_TOKENS = 12
SAMPLES = 8  # answers to each prompt in the measurement

SUBJECTS = (
    "My neighbour", "The old bridge", "Our teacher", "A small dog", "The weather", "This recipe",
    "My first job", "The train", "Her garden", "The library", "Last winter", "The market",
    "A good friend", "The river", "My grandmother", "The city", "That film", "The kitchen",
    "Our holiday", "The doctor", "The museum", "His bicycle", "A long letter", "The harbour",
    "The orchestra", "Their house", "The mountain", "My sister", "The bakery", "The school",
    "An apple tree", "The clock tower", "Our village", "The workshop", "A quiet street",
    "The newspaper", "The lighthouse", "Her brother", "The concert", "The farm",
)  # fmt: skip

_COMMON = {
    "rewards": [{"kind": "regex", "pattern": PATTERN}],
    "iterations": 25,
    "prompts": 8,
    "num_samples": 8,
    "max_tokens": MAX_TOKENS,
    "stop_kl": 0.2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {**_COMMON, "kl_coefficient": 0.01, "kl_target": 12.0, "kl_horizon": 2000},
    "grpo": {**_COMMON, "kl_coefficient": 0.01},
    "rloo": {**_COMMON, "kl_coefficient": 0.01},
}
HYPERPARAMETERS = {
    "batch_size": 16, "learning_rate": 1e-3, "epochs": 1, "warmup": 0.0, "schedule": "constant",
    "frozen_layers": 20,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--iterations", type=int, default=_COMMON["iterations"])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="for figures and plots")
    parser.add_argument("--kill", type=int, metavar="TIMES", help="kill a PPO job instead")
    parser.add_argument("--train", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    wait_as_served()
    if arguments.train is not None:
        train(arguments.train)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.kill is not None:
            from benchmarks import killed_ppo  # noqa: PLC0415 - it imports this

            results = asyncio.run(
                killed_ppo.measure(
                    Path(scratch),
                    kills=arguments.kill,
                    iterations=arguments.iterations,
                    seed=arguments.seeds[0],
                )
            )
        else:
            results = asyncio.run(measure(arguments, Path(scratch)))
    print(json.dumps(results))


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = load_settings(
        None,
        {"data_dir": str(folder / "data"), "grpc": {"port": 0}, "metrics": {"port": 0}},
    )
    base = load_base(settings)
    weights = settings.base_dir / base.digest.removeprefix("sha256:")
    results: dict[str, Any] = {}
    async with running_server(settings, base) as server:
        spare_long_collections()
        target = f"127.0.0.1:{server.port}"
        async with AsyncClient(target) as client:
            before = await mean_reward(client, None)
            print(f"base: {before:.3f} of the answers contain a number", flush=True)
            for algorithm in arguments.algorithms:
                for seed in arguments.seeds:
                    job = {
                        "algorithm": algorithm, "seed": seed, "target": target,
                        "base": str(weights), "folder": str(folder / f"{algorithm}-{seed}"),
                        "options": {**OPTIONS[algorithm], "iterations": arguments.iterations},
                    }  # fmt: skip
                    found = await one_run(client, job, before, arguments.output)
                    if len(arguments.seeds) > 1:
                        results.setdefault(algorithm, {})[str(seed)] = found
                    else:
                        results[algorithm] = found
    return results


async def one_run(
    client: AsyncClient, job: dict[str, Any], before: float, output: Path
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_rlhf", "--train", json.dumps(job)]
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise subprocess.CalledProcessError(process.returncode or 1, command)
    seconds = time.monotonic() - begun
    run = Path(job["folder"]) / "run"
    after = await mean_reward(client, run / "adapter")
    history = json.loads((run / "rollouts.json").read_text())
    last = history[-3:]
    found = {
        "before": round(before, 3),
        "after": round(after, 3),
        "max": MAX_REWARD,
        "kl": round(sum(metrics["kl"] for metrics in last) / len(last), 2),
        "iterations": len(history),
        "sampler_gap": round(max(metrics["sampler_gap"] for metrics in history), 5),
        "seconds": round(seconds),
    }
    print(f"{job['algorithm']} (seed {job['seed']}): {found}", flush=True)
    write_results(output, job, found, history)
    return found


async def mean_reward(client: AsyncClient, adapter: Path | None) -> float:
    settings = RolloutSettings(
        num_samples=SAMPLES, max_tokens=MAX_TOKENS, max_length=128, task="numbers", seed=123_456
    )
    sampler = RolloutSampler(client, adapter="measured", owner="bench", settings=settings)
    if adapter is not None:
        await sampler.set_policy(adapter)
    batch = await sampler.sample([Text(subject) for subject in SUBJECTS], iteration=0)
    scores = await RegexReward(PATTERN).score([rollout.answer for rollout in batch.rollouts])
    await sampler.close()
    return sum(score for score in scores if isinstance(score, float)) / len(scores)


def write_results(
    folder: Path, job: dict[str, Any], found: dict[str, float], history: list[dict[str, float]]
) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - a second, after --help

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    name = f"rlhf-{job['algorithm']}-{job['seed']}"
    document = {
        "machine": describe_machine(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "options": job["options"],
        "hyperparameters": {**HYPERPARAMETERS, "seed": job["seed"]},
        "results": found,
        "iterations": [
            {key: round(value, 5) for key, value in metrics.items()} for metrics in history
        ],
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rewards = [metrics["reward"] for metrics in history]
    divergences = [metrics["kl"] for metrics in history]
    figure, (over_time, against) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    over_time.plot(rewards, label="reward")
    over_time.axhline(0.9 * MAX_REWARD, linestyle=":", color="gray")
    over_time.set(xlabel="iteration", ylabel="mean reward", ylim=(0, 1.05))
    against.plot(divergences, rewards, marker=".")
    against.set(xlabel="KL from the base, nats for each answer", ylabel="mean reward")
    figure.suptitle(f"{job['algorithm'].upper()}, seed {job['seed']}")
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=100)
    pyplot.close(figure)


def train(job: dict[str, Any]) -> None:
    """One training, in a process of its own."""
    from graftwork_trainer.base.model import load_training_base  # noqa: PLC0415 - takes seconds
    from graftwork_trainer.recipes.grpo import train_grpo, train_rloo  # noqa: PLC0415
    from graftwork_trainer.recipes.hyperparameters import Hyperparameters  # noqa: PLC0415
    from graftwork_trainer.recipes.online import ServingAccess  # noqa: PLC0415
    from graftwork_trainer.recipes.ppo import train_ppo  # noqa: PLC0415
    from graftwork_trainer.recipes.run import TrainingProgress, TrainingRun  # noqa: PLC0415

    def show(progress: TrainingProgress) -> None:
        metrics = progress.metrics
        print(
            f"{job['algorithm']} {progress.step:3}/{progress.total_steps}: reward "
            f"{metrics['reward']:.3f}, KL {metrics['kl']:6.2f}, entropy {metrics['entropy']:.2f}, "
            f"length {metrics['length']:.1f}, {progress.tokens_per_second:.0f} tokens/s",
            flush=True,
        )

    folder = Path(job["folder"])
    folder.mkdir()
    train_file = folder / "train.jsonl"
    lines = [json.dumps({"format": "sft", "prompt": {"text": text}}) for text in SUBJECTS]
    train_file.write_text("\n".join(lines) + "\n")
    run = TrainingRun(
        base=load_training_base(Path(job["base"])),
        train=train_file,
        folder=folder / "run",
        hyperparameters=Hyperparameters.parse({**HYPERPARAMETERS, "seed": job["seed"]}),
        progress=show,
    )
    access = ServingAccess(job["target"], adapter="numbers", owner=folder.name, task="numbers")
    recipes = {"ppo": train_ppo, "grpo": train_grpo, "rloo": train_rloo}
    recipes[job["algorithm"]](run, access, job["options"])


if __name__ == "__main__":
    main()
