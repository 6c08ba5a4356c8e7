"""Prompts with worked examples in front: what fine-tuning has to beat to be worth its cost."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from graftwork import Conversation, Message
from graftwork.types import Prompt

from graftwork_trainer.evaluation.examples import EvaluationExample


def demonstrations(
    examples: Sequence[EvaluationExample], task: str, count: int
) -> list[EvaluationExample]:
    """At most `count` training examples of a task, the same ones each time.

    One answer after the other takes its turn, the most frequent first, so that four examples of
    two classes are two of each; prompts of token ids cannot be joined and are passed over.
    """
    by_answer: dict[str, list[EvaluationExample]] = defaultdict(list)
    for example in examples:
        if example.task == task and isinstance(example.prompt, str | Conversation):
            by_answer[example.reference].append(example)
    queues = sorted(by_answer.values(), key=lambda group: (-len(group), group[0].reference))
    for queue in queues:
        queue.sort(key=lambda example: hashlib.sha256(example.id.encode()).digest())
    chosen: list[EvaluationExample] = []
    turn = 0
    while len(chosen) < count and any(turn < len(queue) for queue in queues):
        chosen += [queue[turn] for queue in queues if turn < len(queue)][: count - len(chosen)]
        turn += 1
    return chosen


def few_shot_prompt(shown: Sequence[EvaluationExample], prompt: Prompt) -> Prompt | None:
    """The prompt after worked examples; None where they are of other kinds and cannot be joined.

    Conversations become earlier turns, behind the prompt's own system message. Texts are put one
    after the other, an empty line between them.
    """
    if not shown:
        return None
    if isinstance(prompt, Conversation):
        return _conversation(shown, prompt)
    if isinstance(prompt, str) and all(isinstance(example.prompt, str) for example in shown):
        worked = "".join(f"{example.prompt}{example.reference}\n\n" for example in shown)
        return worked + prompt
    return None


def _conversation(shown: Sequence[EvaluationExample], prompt: Conversation) -> Conversation | None:
    turns = _turns(prompt)
    system = [turn for turn in turns[:1] if turn.role == "system"]
    earlier: list[Message] = []
    for example in shown:
        if not isinstance(example.prompt, Conversation):
            return None
        earlier += [turn for turn in _turns(example.prompt) if turn.role != "system"]
        earlier.append(Message("assistant", example.reference))
    return Conversation((*system, *earlier, *turns[len(system) :]), prompt.documents)


def _turns(conversation: Conversation) -> Sequence[Message]:
    # `read_examples` makes no other; the client would also take mappings.
    return cast("Sequence[Message]", conversation.messages)
