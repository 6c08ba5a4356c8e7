"""Rollouts: the serving engine answers as the policy being trained, over the public API. No torch.

The policy is an ephemeral version of the job's adapter, uploaded after each iteration; before the
first one it is the plain base, or the version that the job goes on from.

Answers are drawn at temperature 1 without filters: then the log-probabilities that come with the
tokens, which are the model's own, are those that the tokens were drawn with.
"""

import asyncio
import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from graftwork import AsyncClient, Choice, FinishReason, GraftworkError, NotFound, Origin
from graftwork.status import InvalidFieldError

from graftwork_trainer.client_prompts import client_prompt
from graftwork_trainer.datasets.prompts import Prompt
from graftwork_trainer.errors import TrainerError
from graftwork_trainer.rewards.reward import Answer

BACKGROUND_PRIORITY = -1  # after users, and slowly beside them
HISTORY_FILE = "rollouts.json"  # in a run's folder: the figures of each iteration

_REQUESTS_AT_ONCE = 32
_CALL_TIMEOUT_S = 3600.0  # beside users the server gives the background little
_WAITS_FOR_ROOM = 20  # tries of a request while the server's queue is full
_WAIT_S = 0.5


class NoRollouts(TrainerError):
    """Nothing that the policy answered can be trained on."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_ROLLOUTS"

    def __init__(self, num_asked: int, skipped: Counter[str]) -> None:
        counted = ", ".join(f"{number} {reason}" for reason, number in skipped.most_common())
        super().__init__(
            f"none of {num_asked} rollouts can be trained on: {counted or 'none was asked for'}"
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """An answer of the policy, and what it was drawn with."""

    prompt: Prompt
    group: int  # answers to one prompt share it
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # its end token included, if it came to its end
    logprobs: tuple[float, ...]  # the engine's, one for each of token_ids
    text: str
    is_truncated: bool  # cut off at max_tokens
    generation_id: str

    @property
    def answer(self) -> Answer:
        """What a reward is asked about."""
        return Answer(self.prompt, self.text, len(self.token_ids))


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    rollouts: tuple[Rollout, ...]  # by group
    # Answers that cannot be trained on, by reason: "empty", "over_long" (prompt and answer exceed
    # max_length, or the prompt the server's context), "not_finite" (a log-probability).
    skipped: Counter[str]

    @property
    def num_truncated(self) -> int:
        return sum(rollout.is_truncated for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    num_samples: int  # answers to each prompt
    max_tokens: int  # of an answer
    max_length: int  # of prompt and answer; what is longer is skipped
    task: str  # as in GenerateRequest
    seed: int


class RolloutSampler:
    """Draws the answers of one job's policy; lives in one event loop. `close` frees the policy.

    Errors of calls are those of `graftwork.errors`.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        adapter: str,
        owner: str,
        settings: RolloutSettings,
        initial_version: str = "",
    ) -> None:
        """`owner` is the job's id. `initial_version` "name@version" answers before the first
        `set_policy`; "" is the plain base."""
        self._client = client
        self._adapter = adapter
        self._owner = owner
        self._settings = settings
        self._selector = initial_version
        self._uploaded = ""
        self._prompt_ids: dict[Prompt, tuple[int, ...]] = {}

    @property
    def selector(self) -> str:
        """What answers: "name@version", or "" for the base."""
        return self._selector

    async def check(self) -> None:
        """Asks the server whether it serves what the settings want; raises InvalidFieldError."""
        limits = (await self._client.model()).limits
        wanted = [
            ("num_samples", self._settings.num_samples, limits.max_n),
            ("max_tokens", self._settings.max_tokens, limits.max_new_tokens),
        ]
        for name, value, most in wanted:
            if value > most:
                raise InvalidFieldError(
                    f"recipe_options.{name}", f"is {value}, and this server allows {most}"
                )

    async def set_policy(self, folder: Path) -> None:
        """Answers come from this PEFT folder from now on."""
        version = await self._client.adapters.upload(
            self._adapter, folder, ephemeral_owner=self._owner
        )
        self._selector = self._uploaded = version.selector

    async def sample(self, prompts: Sequence[Prompt], *, iteration: int) -> RolloutBatch:
        """The policy's answers to each prompt; the same ones for the same policy, iteration and
        seed. Raises NoRollouts where none can be trained on."""
        skipped = Counter[str]()
        room = asyncio.Semaphore(_REQUESTS_AT_ONCE)

        async def answered(group: int, prompt: Prompt) -> list[Rollout]:
            async with room:
                return await self._answers(group, prompt, iteration, skipped)

        calls = [
            asyncio.create_task(answered(group, prompt)) for group, prompt in enumerate(prompts)
        ]
        try:
            groups = await asyncio.gather(*calls)
        finally:
            for call in calls:  # after an error, those that still run
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        rollouts = tuple(rollout for group in groups for rollout in group)
        if not rollouts:
            raise NoRollouts(len(prompts) * self._settings.num_samples, skipped)
        return RolloutBatch(rollouts, skipped)

    async def close(self) -> None:
        """Frees what was uploaded; idempotent."""
        selector, self._uploaded = self._uploaded, ""
        if selector:
            with contextlib.suppress(NotFound):  # the server was started anew
                await self._client.adapters.delete(selector)

    async def _answers(
        self, group: int, prompt: Prompt, iteration: int, skipped: Counter[str]
    ) -> list[Rollout]:
        settings = self._settings
        prompt_ids = await self._tokenize(prompt)
        if len(prompt_ids) >= settings.max_length:
            skipped["over_long"] += settings.num_samples
            return []
        choices = await self._generate(prompt, _seed(settings.seed, iteration, group))
        rollouts = []
        for choice in choices:
            reason = self._unusable(choice, len(prompt_ids))
            if reason is not None:
                skipped[reason] += 1
                continue
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    group=group,
                    prompt_ids=prompt_ids,
                    token_ids=choice.token_ids,
                    logprobs=_logprobs(choice),
                    text=choice.text,
                    is_truncated=choice.finish_reason is FinishReason.LENGTH,
                    generation_id=choice.generation_id,
                )
            )
        return rollouts

    def _unusable(self, choice: Choice, prompt_length: int) -> str | None:
        """Why an answer cannot be trained on."""
        if not choice.text.strip():
            return "empty"
        if prompt_length + len(choice.token_ids) > self._settings.max_length:
            return "over_long"
        logprobs = _logprobs(choice)
        if len(logprobs) != len(choice.token_ids) or not all(map(math.isfinite, logprobs)):
            return "not_finite"
        return None

    async def _generate(self, prompt: Prompt, seed: int) -> tuple[Choice, ...]:
        """Waits while the server's queue is full, as users come first."""
        for left in reversed(range(_WAITS_FOR_ROOM)):
            try:
                generation = await self._client.generate(
                    client_prompt(prompt),
                    adapter=self._selector,
                    temperature=1.0,
                    max_tokens=self._settings.max_tokens,
                    n=self._settings.num_samples,
                    logprobs=0,
                    seed=seed,
                    task=self._settings.task,
                    origin=Origin.ROLLOUT,
                    priority=BACKGROUND_PRIORITY,
                    timeout=_CALL_TIMEOUT_S,
                )
            except GraftworkError as error:
                if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or not left:
                    raise
                await asyncio.sleep(error.retry_after_s or _WAIT_S)
            else:
                return generation.choices
        raise AssertionError  # the last try returns or raises

    async def _tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """Of a prompt as the engine sees it; asked for once."""
        known = self._prompt_ids.get(prompt)
        if known is None:
            asked = client_prompt(prompt)
            if isinstance(asked, list):
                known = tuple(asked)
            else:
                known = (await self._client.tokenize(asked)).token_ids
            self._prompt_ids[prompt] = known
        return known


def _logprobs(choice: Choice) -> tuple[float, ...]:
    return tuple(token.logprob for token in choice.logprobs if token.logprob is not None)


def _seed(seed: int, iteration: int, group: int) -> int:
    """64 bits that differ between neighbours in all of them."""
    text = f"{seed}/{iteration}/{group}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
