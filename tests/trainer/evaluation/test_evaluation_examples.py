"""Examples of a snapshot, the classes among their answers, and prompts with worked examples."""

import json
from pathlib import Path

import pytest
from graftwork import Conversation, Message
from graftwork_trainer.errors import InvalidExample
from graftwork_trainer.evaluation.examples import (
    EvaluationExample,
    classes_by_task,
    digest_of,
    read_examples,
    sample,
)
from graftwork_trainer.evaluation.few_shot import demonstrations, few_shot_prompt
from graftwork_trainer.evaluation.metrics import positive_class


def example(number: int, reference: str, *, task: str = "t", **changes) -> EvaluationExample:
    prompt = Conversation((Message("system", "Be brief."), Message("user", f"question {number}")))
    fields = {"id": f"{task}-{number}", "task": task, "prompt": prompt, "reference": reference}
    return EvaluationExample(**{**fields, **changes})


def line(**changes) -> str:
    fields = {
        "format": "sft",
        "id": "1",
        "task": "t",
        "prompt": {"text": "1 + 1 ="},
        "completion": "2",
        "create_time": "2026-01-31T12:00:00Z",
    }
    return json.dumps({**fields, **changes}) + "\n"


def test_formats_with_one_right_answer_are_read(tmp_path: Path):
    path = tmp_path / "validation.jsonl"
    pair = {"format": "preference", "chosen": "good", "rejected": "bad"}
    preference = {k: v for k, v in json.loads(line(**pair, id="3")).items() if k != "completion"}
    path.write_text(
        line()
        + line(id="2", format="classification", prompt={"token_ids": [3, 4]})
        + json.dumps(preference)
        + "\n"
        + line(id="4", format="unpaired", label=True)
    )
    found = read_examples(path)
    assert [(e.id, e.prompt, e.reference, e.is_class) for e in found] == [
        ("1", "1 + 1 =", "2", False),
        ("2", (3, 4), "2", True),
        ("3", "1 + 1 =", "good", False),
    ]


def test_a_damaged_line_is_named(tmp_path: Path):
    path = tmp_path / "golden.jsonl"
    path.write_text(line() + line(prompt={"text": 1}))
    with pytest.raises(InvalidExample, match=r"golden\.jsonl line 2\.prompt\.text"):
        read_examples(path)


def test_a_sample_depends_on_ids_alone():
    examples = [example(n, "a") for n in range(50)]
    chosen = sample(examples, 10)
    assert len(chosen) == 10
    assert chosen == sorted(chosen, key=examples.index)
    assert set(map(id, sample(examples[::-1], 10))) == set(map(id, chosen))
    assert sample(examples, 50) == examples
    assert digest_of(examples) != digest_of(examples[::-1])


def test_classes_are_few_answers_to_many_prompts():
    words = [example(n, f"answer {n}") for n in range(30)]
    labels = [example(n, "yes" if n % 2 else "no", task="l") for n in range(30)]
    assert classes_by_task([*words, *labels]) == {"l": ("no", "yes")}
    stated = [example(n, label, task="s", is_class=True) for n, label in enumerate("ab")]
    assert classes_by_task(stated) == {"s": ("a", "b")}


def test_worked_examples_take_turns_by_answer():
    examples = [example(n, "ham" if n % 5 else "spam") for n in range(40)]
    shown = demonstrations(examples, "t", 4)
    assert [e.reference for e in shown] == ["ham", "spam", "ham", "spam"]
    assert shown == demonstrations(examples[::-1], "t", 4)
    assert len(demonstrations(examples, "t", 100)) == 40
    assert not demonstrations(examples, "other", 4)
    assert not demonstrations([example(0, "a", prompt=(1, 2))], "t", 4)


def test_conversations_become_earlier_turns():
    prompt = few_shot_prompt([example(1, "one")], example(2, "two").prompt)
    assert isinstance(prompt, Conversation)
    assert [(turn.role, turn.content) for turn in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "question 1"),
        ("assistant", "one"),
        ("user", "question 2"),
    ]


def test_texts_are_put_in_front():
    shown = [example(1, "2", prompt="1 + 1 = ")]
    assert few_shot_prompt(shown, "2 + 2 = ") == "1 + 1 = 2\n\n2 + 2 = "


def test_what_cannot_be_joined_is_no_prompt():
    text, conversation = example(1, "2", prompt="1 + 1 = "), example(2, "two")
    assert few_shot_prompt([], "text") is None
    assert few_shot_prompt([conversation], "text") is None
    assert few_shot_prompt([text], conversation.prompt) is None
    assert few_shot_prompt([text], (1, 2)) is None


def test_equally_frequent_classes_have_a_positive_one_all_the_same():
    assert positive_class(["b", "a"]) == "a"
