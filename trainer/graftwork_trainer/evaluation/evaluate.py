"""Asks a contender all examples over the public API: scores what is right, and lets it answer.

Requests are marked as evaluation in the journal, so that no data set takes their answers for
users', and stand behind users' requests in the server's queue.
Finished contenders are kept in the job's folder under what they depend on, so that a job that goes
on after a crash does not ask again.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from graftwork import Client, Origin
from graftwork.errors import Internal, InvalidArgument, ResourceExhausted
from graftwork.types import FinishReason, Generation, Prompt

from graftwork_trainer.evaluation.examples import EvaluationExample, digest_of
from graftwork_trainer.evaluation.few_shot import few_shot_prompt
from graftwork_trainer.evaluation.outcomes import Outcome, Role, load_outcomes, save_outcomes

MAX_IN_FLIGHT = 16
_CALL_TIMEOUT_S = 300.0  # of one example's call, waiting for a full queue included
_SHORTEST_WAIT_S = 0.05
_PRIORITY = -10
_FREE_TEXT_TOKENS = 256
# Changes with what is asked of each example, so that answers to other questions are not reused.
_PROTOCOL = 1

Progress = Callable[[int, int], None]  # examples done, and all there are
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Contender:
    """Who answers: a selector with the digest of what it names (the base's for "")."""

    role: Role
    selector: str
    digest: str
    # For the few-shot prompt: worked examples by task.
    shown: Mapping[str, Sequence[EvaluationExample]] = field(default_factory=dict)

    def prompt(self, example: EvaluationExample) -> Prompt | None:
        """None where no few-shot prompt can be made for the example."""
        if self.role is not Role.FEW_SHOT:
            return example.prompt
        return few_shot_prompt(self.shown.get(example.task, ()), example.prompt)


class Evaluator:
    """Asks contenders through one client, at most `max_in_flight` examples at a time.

    `classes` names the classes of each task that has some, `cache` is a folder of the job.
    """

    def __init__(
        self,
        client: Client,
        classes: Mapping[str, Sequence[str]],
        cache: Path,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._client = client
        self._classes = classes
        self._cache = cache
        self._max_in_flight = max_in_flight
        self._class_tokens: dict[str, int] = {}
        self._limits = client.model().limits

    def run(
        self,
        contender: Contender,
        examples: Sequence[EvaluationExample],
        progress: Progress | None = None,
    ) -> tuple[Outcome, ...]:
        """One outcome for each example, in order.

        An example that the server refuses (too long a prompt) or cannot compute (logits that are
        not finite) becomes an outcome with an error; every other failure is raised, as the errors
        of `graftwork.errors`.
        """
        path = self._cache / f"{self._key(contender, examples)}.json"
        kept = load_outcomes(path)
        if kept is not None:
            if progress is not None:
                progress(len(examples), len(examples))
            return kept
        self._measure_classes(examples)
        outcomes = self._ask_all(contender, examples, progress)
        save_outcomes(path, outcomes)
        return outcomes

    def _ask_all(
        self,
        contender: Contender,
        examples: Sequence[EvaluationExample],
        progress: Progress | None,
    ) -> tuple[Outcome, ...]:
        pool = ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="evaluation")
        try:
            waiting: set[Future[Outcome]] = set()
            futures = [pool.submit(self._ask, contender, example) for example in examples]
            waiting.update(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if progress is not None:
                    progress(len(examples) - len(waiting), len(examples))
            return tuple(future.result() for future in futures)
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, contender: Contender, example: EvaluationExample) -> Outcome:
        prompt = contender.prompt(example)
        if prompt is None:
            return Outcome(example.id, error="no few-shot prompt can be made of these examples")
        try:
            return self._answers(contender.selector, prompt, example)
        except (InvalidArgument, Internal) as error:
            return Outcome(example.id, error=error.message)

    def _answers(self, selector: str, prompt: Prompt, example: EvaluationExample) -> Outcome:
        result = _patiently(
            lambda: self._client.score(
                prompt, [example.reference], adapter=selector, timeout=_CALL_TIMEOUT_S
            )
        )
        scored, num_tokens = result.scores[0], len(result.scores[0].logprobs)
        classes = self._classes.get(example.task, ())
        if classes:
            limit = self._class_tokens[example.task]
        else:
            room = self._limits.max_context_tokens - result.usage.prompt_tokens
            longest = min(_FREE_TEXT_TOKENS, self._limits.max_new_tokens, max(room, 1))
            limit = min(math.ceil(1.5 * num_tokens) + 8, longest)
        free = self._generate(selector, prompt, example.task, limit)
        predicted = ""
        if classes:
            # Greedy text that is a class is what a choice among the classes would give too.
            ended = free.choices[0].finish_reason is FinishReason.STOP
            if ended and free.text in classes:
                predicted = free.text
            else:
                predicted = self._generate(selector, prompt, example.task, limit, classes).text
        return Outcome(example.id, scored.total_logprob, num_tokens, free.text, predicted)

    def _generate(
        self,
        selector: str,
        prompt: Prompt,
        task: str,
        max_tokens: int,
        choice: Sequence[str] | None = None,
    ) -> Generation:
        return _patiently(
            lambda: self._client.generate(
                prompt,
                adapter=selector,
                max_tokens=max_tokens,
                choice=choice,
                priority=_PRIORITY,
                task=task,
                origin=Origin.EVALUATION,
                timeout=_CALL_TIMEOUT_S,
            )
        )

    def _measure_classes(self, examples: Sequence[EvaluationExample]) -> None:
        """Tokens that the longest class of each task may take, with some room for another
        spelling of it."""
        for task in {example.task for example in examples} & self._classes.keys():
            if task not in self._class_tokens:
                lengths = [len(self._client.tokenize(c).token_ids) for c in self._classes[task]]
                self._class_tokens[task] = max(lengths) + 4

    def _key(self, contender: Contender, examples: Sequence[EvaluationExample]) -> str:
        shown = {task: digest_of(items) for task, items in sorted(contender.shown.items())}
        classes = {task: list(labels) for task, labels in sorted(self._classes.items())}
        parts = [_PROTOCOL, contender.selector, contender.digest, digest_of(examples), shown]
        return hashlib.sha256(json.dumps([*parts, classes]).encode()).hexdigest()


def _patiently(call: Callable[[], _T]) -> _T:
    """The call's answer; waits as told where the server's queue is full, within its timeout."""
    give_up = time.monotonic() + _CALL_TIMEOUT_S
    while True:
        try:
            return call()
        except ResourceExhausted as error:
            if error.retry_after_s is None or time.monotonic() + error.retry_after_s > give_up:
                raise
            time.sleep(max(error.retry_after_s, _SHORTEST_WAIT_S))
