"""What a data set consists of, as figures for its manifest and as Markdown for people."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graftwork_trainer.datasets.cleaning import answers_of, class_of
from graftwork_trainer.datasets.duplicates import prompt_text
from graftwork_trainer.datasets.examples import ClassificationExample, Example
from graftwork_trainer.datasets.splitting import Splits

_RARE = 10  # fewer validation examples of a class say little about it

_REASONS = {
    "unscrubbable": "token ids, which cannot be scrubbed",
    "truncated": "the answer was cut off",
    "empty_prompt": "nothing was asked",
    "empty_answer": "an answer is empty",
    "same_answers": "both answers are the same",
    "outvoted": "most authors, or its own author later, say otherwise",
    "contradictory": "authors contradict each other, without a majority",
    "duplicate": "another example is the same",
    "near_duplicate": "another example is nearly the same",
    "held_by_golden": "shares prompt, episode or author with the golden set",
}


def figures(
    content: Mapping[str, Sequence[Example]],
    originals: Sequence[Example],
    *,
    received: int,
    dropped: Mapping[str, int],
    splits: Splits,
) -> dict[str, Any]:
    """As JSON: what came in, what was dropped, and what each split has.

    `originals` is the training split before examples were chosen, repeated and changed.
    """
    everything = [example for examples in content.values() for example in examples]
    tasks: dict[str, Any] = {}
    for task in sorted({example.task for example in everything}):
        own = {split: [e for e in of if e.task == task] for split, of in content.items()}
        tasks[task] = {
            "labels": sorted(
                {
                    e.completion
                    for examples in own.values()
                    for e in examples
                    if isinstance(e, ClassificationExample)
                }
            ),
            "order": splits.order_of_task.get(task, "time"),
            "splits": {
                split: {"examples": len(examples), "classes": _classes(examples)}
                for split, examples in own.items()
            },
        }
    trained = {example.id for example in content["train"]}
    left_out = sum(example.id not in trained for example in originals)
    return {
        "received": received,
        "dropped": {reason: dropped[reason] for reason in sorted(dropped) if dropped[reason]},
        "groups": splits.num_groups,
        "training": {
            "originals": len(originals),
            "left_out": left_out,
            "copies": len(trained) - (len(originals) - left_out),
        },
        "tasks": tasks,
        "lengths": {split: _lengths(examples) for split, examples in content.items()},
        "warnings": list(_warnings(tasks)),
    }


def markdown(manifest: Mapping[str, Any]) -> str:
    """The same as a page."""
    training = manifest["training"]
    format_name = manifest["settings"]["selection"]["format"]
    lines = [
        "# Data set",
        "",
        f"{manifest['received']} examples of the format {format_name} came in. "
        f"What can be trained and validated on falls into {manifest['groups']} independent groups. "
        f"Of {training['originals']} to train on, {training['left_out']} were left out, and "
        f"{training['copies']} copies were added.",
        "",
        *_table(
            ("left out", "examples", "because"),
            [(r, n, _REASONS.get(r, "")) for r, n in manifest["dropped"].items()],
        ),
        *_table(
            ("task", "validation by", "class", "train", "validation", "golden"),
            [row for task, found in manifest["tasks"].items() for row in _rows(task, found)],
        ),
        *_table(
            ("length in words", "of", "median", "95%", "longest"),
            [
                (split, of, *values.values())
                for split, lengths in manifest["lengths"].items()
                for of, values in lengths.items()
            ],
        ),
        *(f"- {warning}" for warning in manifest["warnings"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _rows(task: str, found: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    splits = found["splits"].values()
    yield (task, found["order"], "all", *(split["examples"] for split in splits))
    for label in sorted({label for split in splits for label in split["classes"]}):
        yield ("", "", label, *(split["classes"].get(label, 0) for split in splits))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return []
    cells = [[_cell(value) for value in row] for row in (head, *rows)]
    table = [f"| {' | '.join(row)} |" for row in cells]
    return [table[0], "|" + "---|" * len(head), *table[1:], ""]


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())[:80]


def _classes(examples: Iterable[Example]) -> dict[str, int]:
    counts = Counter(label for example in examples if (label := class_of(example)))
    return dict(sorted(counts.items()))


def _lengths(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    if not examples:
        return {}
    prompts = sorted(len(prompt_text(example.prompt).split()) for example in examples)
    answers = sorted(len(text.split()) for example in examples for text in answers_of(example))
    return {name: _spread(values) for name, values in (("prompt", prompts), ("answer", answers))}


def _spread(values: Sequence[int]) -> dict[str, int]:
    return {
        "median": values[len(values) // 2],
        "p95": values[min(len(values) - 1, len(values) * 95 // 100)],
        "max": values[-1],
    }


def _warnings(tasks: Mapping[str, Any]) -> Iterable[str]:
    for task, found in tasks.items():
        splits = found["splits"]
        if not splits["validation"]["examples"]:
            yield f'task "{task}" has no validation examples'
        if not splits["golden"]["examples"]:
            yield f'task "{task}" has no golden set'
        for label, count in splits["train"]["classes"].items():
            held_out = splits["validation"]["classes"].get(label, 0)
            if held_out < _RARE:
                yield (
                    f'class "{label}" of task "{task}" has {held_out} validation examples '
                    f"({count} to train on): figures on it are rough"
                )
