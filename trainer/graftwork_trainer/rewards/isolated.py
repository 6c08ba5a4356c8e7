"""Rewards by code that may hang, raise or crash, in a process that can be ended.

What the code does to itself ends with its process; it is no prison for hostile code, which an
operator would have had to install as a plug-in.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from graftwork_trainer.datasets.prompts import Conversation, Prompt, Text
from graftwork_trainer.rewards.errors import RewardUnavailable, UnknownPlugin
from graftwork_trainer.rewards.reward import Answer, Reward, Score, Unscored, finite

_COMMAND = (sys.executable, "-P", "-m", "graftwork_trainer.rewards.child")
_START_TIMEOUT_S = 60.0
_MAX_LINE_BYTES = 1 << 20
_MAX_FAILURES = 5  # processes that hang or die in a row


class IsolatedReward(Reward):
    """`wanted` is the first line of child.py; `timeout_s` is for one answer.

    A process that does not answer in time, or dies, is replaced, and its answer Unscored. Raises
    UnknownPlugin, and RewardUnavailable where the code cannot even be loaded, or loses five
    processes in a row.
    """

    def __init__(self, name: str, wanted: Mapping[str, Any], *, timeout_s: float) -> None:
        self._name = name
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._process: Process | None = None
        self._num_failures = 0  # in a row
        self._turn = asyncio.Lock()

    async def score(self, answers: Sequence[Answer]) -> list[Score]:
        async with self._turn:
            return [await self._score(answer) for answer in answers]

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await _end(process)

    async def _score(self, answer: Answer) -> Score:
        process = self._process
        if process is None:
            process = self._process = await self._start()
        asked = {"prompt": plain_prompt(answer.prompt), "completion": answer.text}
        try:
            said = await asyncio.wait_for(_ask(process, asked), self._timeout_s)
        except TimeoutError:
            return await self._lost("timed_out", f"{self._name} took over {self._timeout_s:g} s")
        if said is None:
            return await self._lost("raised", f"the process of {self._name} died")
        self._num_failures = 0
        if "raised" in said:
            return Unscored("raised", f"{self._name} raised {said['raised']}")
        return finite(said["reward"])

    async def _lost(self, reason: str, detail: str) -> Unscored:
        await self.close()
        self._num_failures += 1
        if self._num_failures == _MAX_FAILURES:
            raise RewardUnavailable(f"{detail}, and so {_MAX_FAILURES} times in a row")
        return Unscored(reason, detail)

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=PIPE,
            stdout=PIPE,
            limit=_MAX_LINE_BYTES,
            # The paths of this interpreter, whichever way they came to be.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            said = await asyncio.wait_for(_ask(process, self._wanted), _START_TIMEOUT_S)
            self._check_ready(said)
        except BaseException as error:
            await _end(process)
            if isinstance(error, TimeoutError):
                raise RewardUnavailable(
                    f"{self._name} was not loaded within {_START_TIMEOUT_S:g} s"
                ) from None
            raise
        return process

    def _check_ready(self, said: Mapping[str, Any] | None) -> None:
        if said is None:
            raise RewardUnavailable(f"{self._name} ended its process while it was loaded")
        if "unknown_plugin" in said:
            raise UnknownPlugin(self._wanted["plugin"], said["unknown_plugin"])
        if "failed" in said:
            raise RewardUnavailable(f"{self._name} cannot be loaded: {said['failed']}")


def plugin_reward(name: str, *, timeout_s: float) -> IsolatedReward:
    """The plug-in of the entry point group `graftwork.rewards` with this name."""
    return IsolatedReward(f'reward plug-in "{name}"', {"plugin": name}, timeout_s=timeout_s)


def json_schema_reward(schema: dict[str, Any], *, timeout_s: float) -> IsolatedReward:
    """1 where an answer is JSON that the schema takes, 0 where not.

    Apart from this process because the patterns of a schema may backtrack without end. Raises as
    `check_schema`.
    """
    check_schema(schema)
    return IsolatedReward("the JSON schema", {"json_schema": schema}, timeout_s=timeout_s)


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for what is no JSON schema."""
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON schema: {error.message}") from None


def plain_prompt(prompt: Prompt) -> Any:
    """As a plug-in gets it: a text, a list of messages, or a list of token ids."""
    if isinstance(prompt, Text):
        return prompt.text
    if isinstance(prompt, Conversation):
        return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    return list(prompt.ids)


async def _ask(process: Process, value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The next line that the process says; None where it is dead, or says what is no answer."""
    assert process.stdin is not None  # noqa: S101 - pipes were asked for
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(json.dumps(value).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        said = json.loads(line)
    except (ConnectionError, ValueError):
        return None
    return said if isinstance(said, dict) else None


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()
