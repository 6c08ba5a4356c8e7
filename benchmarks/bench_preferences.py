r"""DPO, KTO, ORPO and the reward model beside TRL alone, on human preferences.

    python -m benchmarks.bench_preferences PAIRS.jsonl.gz [--recipes dpo kto orpo reward]
    python -m benchmarks.bench_preferences PAIRS.jsonl.gz --all --recipes reward dpo \
        --max-length 256 --batch-size 1 --accumulation 8

PAIRS holds one JSON object a line, {"chosen": ..., "rejected": ...}, each a dialogue of
"\n\nHuman:" and "\n\nAssistant:" turns, as Anthropic's HH-RLHF has them. The first 96 pairs of at
most --max-length tokens are trained on for one epoch, twice: by our recipe over the base's mapped
weights, and by TRL alone on the same weights as plain float32 modules, with the same seeds and
order. The last line is JSON by recipe: the largest difference of two steps' losses, the losses of
first and last step, and seconds.

With --all, ours alone trains on all pairs but every tenth, and the figures on those held out are
told. Batches are padded to their longest row: steps of several small ones waste less. With
--output, the figures, the loss of each step and a plot are written there.
"""

import argparse
import datetime
import gzip
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork_server.config import load_settings
from graftwork_server.serve import load_base
from graftwork_trainer.base.model import TrainingBase, load_training_base
from graftwork_trainer.evaluation.intervals import wilson
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.run import TrainingProgress, TrainingRun, read_summary
from graftwork_trainer.recipes.table import RECIPES
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.machine import describe_machine
from benchmarks.trl_alone import Pair, losses_of_trl, plain_arguments, unpaired

NUM_PAIRS = 96
TURN = "\n\nAssistant:"
LORA = {
    "r": 16, "lora_alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
RATE = 1e-4
HELD_OUT = 10  # every tenth pair
ACCURACIES = {"reward": "accuracy", "dpo": "rewards/accuracies", "orpo": "rewards/accuracies"}


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one recipe."""

    figures: dict[str, Any]
    losses: dict[str, list[float]]  # of each step, by who trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pairs", type=Path)
    names = ("dpo", "kto", "orpo", "reward")
    parser.add_argument("--recipes", nargs="+", choices=names, default=names)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a dialogue")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=NUM_PAIRS, help="pairs")
    parser.add_argument("--accumulation", type=int, default=1, help="batches of a step, with --all")
    parser.add_argument("--all", action="store_true", help="ours alone, on all pairs")
    parser.add_argument("--output", type=Path, help="a folder for figures, losses and a plot")
    arguments = parser.parse_args()
    if arguments.accumulation > 1 and not arguments.all:
        parser.error("--accumulation goes with --all")
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = training_base(folder)
        pairs = read_pairs(arguments.pairs, base.tokenizer, arguments.max_length)
        measure = learn if arguments.all else compare
        results: dict[str, Measured] = {}
        for recipe in arguments.recipes:
            results[recipe] = measure(recipe, base, pairs, folder / recipe, arguments)
            if arguments.output is not None:
                write_results(arguments, results)  # what is done is kept, if the next takes long
    print(json.dumps({recipe: measured.figures for recipe, measured in results.items()}))


def training_base(folder: Path) -> TrainingBase:
    """The default model as a server writes it for its trainer."""
    settings = load_settings(None, {"data_dir": str(folder / "data")})
    served = load_base(settings)
    return load_training_base(settings.base_dir / served.digest.removeprefix("sha256:"))


def read_pairs(path: Path, tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[Pair]:
    """Pairs that differ in the last answer alone, and are short enough on both sides."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            value = json.loads(line)
            prompts, answers = zip(
                *(value[side].rsplit(TURN, 1) for side in ("chosen", "rejected")), strict=True
            )
            if prompts[0] != prompts[1] or answers[0] == answers[1] or not all(answers):
                continue
            prompt = prompts[0] + TURN
            longest = max(len(tokenizer(prompt + answer)["input_ids"]) for answer in answers)
            if longest < max_length:  # the end token comes on top
                pairs.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return pairs


def compare(
    recipe: str, base: TrainingBase, pairs: list[Pair], folder: Path, arguments: argparse.Namespace
) -> Measured:
    pairs = pairs[: arguments.count]
    losses: list[float] = []
    run = make_run(recipe, base, pairs, [], folder, arguments=arguments, losses=losses)
    begun = time.monotonic()
    RECIPES[recipe](run, {})
    ours_s = time.monotonic() - begun
    begun = time.monotonic()
    expected = losses_of_trl(
        recipe,
        base,
        pairs,
        lora={**LORA, "task_type": "CAUSAL_LM"},
        arguments=plain_arguments(
            folder,
            len(losses),
            seed=0,
            data_seed=0,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            per_device_train_batch_size=arguments.batch_size,
        ),
        max_length=arguments.max_length,
    )
    trl_s = time.monotonic() - begun
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    found = {
        "pairs": len(pairs),
        "steps": len(losses),
        "largest_difference": round(difference, 7),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        "seconds": {"ours": round(ours_s, 1), "trl": round(trl_s, 1)},
    }
    print(f"{recipe}: {found}", flush=True)
    return Measured(found, {"Graftwork": losses, "TRL alone": expected})


def learn(
    recipe: str, base: TrainingBase, pairs: list[Pair], folder: Path, arguments: argparse.Namespace
) -> Measured:
    held_out = pairs[::HELD_OUT]
    # TRL's figures are means over batches: an incomplete one would weigh as much as the others.
    held_out = held_out[: len(held_out) // arguments.batch_size * arguments.batch_size]
    train = [pair for number, pair in enumerate(pairs) if number % HELD_OUT]
    losses: list[float] = []
    run = make_run(recipe, base, train, held_out, folder, arguments=arguments, losses=losses)
    begun = time.monotonic()
    RECIPES[recipe](run, {})
    summary = read_summary(run.folder)
    found: dict[str, Any] = {
        "pairs": len(train),
        "held_out": len(held_out),
        "validation_loss": round(summary.validation_loss or 0.0, 4),
        "metrics": {name: round(value, 4) for name, value in summary.metrics.items()},
        "seconds": round(time.monotonic() - begun),
    }
    if recipe in ACCURACIES:
        found["held_out_accuracy"] = interval(summary.metrics[ACCURACIES[recipe]], len(held_out))
    print(f"{recipe}: {found}", flush=True)
    return Measured(found, {"Graftwork": losses})


def interval(share: float, total: int) -> dict[str, float]:
    """With the 95% interval around it."""
    found = wilson(min(share * total, total), total)
    return {
        "value": round(found.value, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
    }


def make_run(
    recipe: str,
    base: TrainingBase,
    train: list[Pair],
    validation: list[Pair],
    folder: Path,
    *,
    arguments: argparse.Namespace,
    losses: list[float],
) -> TrainingRun:
    """One epoch; `losses` gets that of each step."""
    folder.mkdir()
    steps = itertools.count(1)

    def show(progress: TrainingProgress) -> None:
        losses.append(progress.loss)
        if next(steps) % 10 == 0:
            print(
                f"{recipe} {progress.step}/{progress.total_steps}: {progress.loss:.4f}", flush=True
            )

    files = {}
    for name, pairs in (("train", train), ("validation", validation)):
        files[name] = folder / f"{name}.jsonl"
        examples = unpaired(pairs) if recipe == "kto" else pairs
        kind = {"kto": "unpaired", "reward": "reward"}.get(recipe, "preference")
        files[name].write_text(
            "".join(
                json.dumps({**row, "format": kind, "prompt": {"text": row["prompt"]}}) + "\n"
                for row in examples
            )
        )
    parameters = {
        "learning_rate": RATE,
        "batch_size": arguments.batch_size,
        "gradient_accumulation": arguments.accumulation,
        "max_length": arguments.max_length,
        "warmup": 0.0,
    }
    return TrainingRun(
        base=base,
        train=files["train"],
        validation=files["validation"] if validation else None,
        folder=folder / "run",
        hyperparameters=Hyperparameters.parse(parameters),
        method_config=LORA,
        progress=show,
    )


def write_results(arguments: argparse.Namespace, results: dict[str, Measured]) -> None:
    """`preferences.json` and `.png`, or with --all `all-pairs-RECIPES`."""
    import matplotlib as mpl  # noqa: PLC0415 - a second, after --help

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(["all-pairs", *arguments.recipes]) if arguments.all else "preferences"
    document = {
        "machine": describe_machine(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "setting": {
            "max_length": arguments.max_length,
            "batch_size": arguments.batch_size,
            "gradient_accumulation": arguments.accumulation,
            "learning_rate": RATE,
            "lora": LORA,
        },
        "results": {recipe: measured.figures for recipe, measured in results.items()},
        "losses": {
            recipe: {who: [round(loss, 5) for loss in of] for who, of in measured.losses.items()}
            for recipe, measured in results.items()
        },
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.2), squeeze=False)
    for axis, (recipe, measured) in zip(axes[0], results.items(), strict=True):
        for style, (who, losses) in zip(("-", "--"), measured.losses.items(), strict=False):
            axis.plot(range(1, len(losses) + 1), losses, style, label=who)
        axis.set(title=recipe, xlabel="step", ylabel="loss")
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
