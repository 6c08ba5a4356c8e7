"""The whole loop on real data: the base fails at SMS spam, people correct it, an adapter learns.

    python -m benchmarks.demo [--corrections 1000]

A server of its own runs as a user would start it; everything goes over gRPC. The last line is
JSON: accuracy and F1 (of spam) on 400 messages that nobody corrected, `before` and `after`; how
much longer the 99th percentile of the gap between tokens is while a job trains; seconds in all.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from graftwork import AsyncClient, Conversation, Message
from graftwork.feedback_types import Feedback
from graftwork.training_types import HyperparameterOptions as Hyperparameters
from graftwork.training_types import JobState, TrainingJob

from benchmarks import sms_spam
from benchmarks.latency import Gaps, measure_gaps
from benchmarks.server_process import ready, running_process
from benchmarks.sms_spam import HAM, LABELS, SPAM

TASK = ADAPTER = "sms-spam"
SYSTEM = "Is this SMS spam? Answer spam or ham."
NUM_TEST = 400
# People report spam more than they praise what is none: a third of the corrections.
SPAM_SHARE = 0.35
NUM_WRONG = 160
CONCURRENCY = 16
STREAMS = 4
SHOW_EVERY_S = 15


@dataclass(frozen=True, slots=True)
class Quality:
    """Of answers as they came, without a constraint; F1 of spam."""

    accuracy: float
    f1: float


class Demo:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._turns = asyncio.Semaphore(CONCURRENCY)

    async def answer(self, message: sms_spam.Message, adapter: str) -> tuple[str, str]:
        """(text, generation id)"""
        prompt = Conversation([Message("system", SYSTEM), Message("user", message.text)])
        async with self._turns:
            generation = await self._client.generate(
                prompt, adapter=adapter, max_tokens=4, task=TASK
            )
        [choice] = generation.choices
        return choice.text.strip().lower().rstrip("."), choice.generation_id

    async def quality(self, messages: Sequence[sms_spam.Message], adapter: str) -> Quality:
        answers = await asyncio.gather(*(self.answer(m, adapter) for m in messages))
        pairs = [(m.label, text) for m, (text, _) in zip(messages, answers, strict=True)]
        hits = sum(label == text == SPAM for label, text in pairs)
        misses = sum(label == SPAM != text for label, text in pairs)
        alarms = sum(label == HAM and text == SPAM for label, text in pairs)
        right = sum(label == text for label, text in pairs)
        return Quality(right / len(pairs), 2 * hits / max(1, 2 * hits + misses + alarms))

    async def correct(self, messages: Sequence[sms_spam.Message], author: str) -> None:
        """Asks the adapter's name, or the base, and tells what is right."""
        answers = await asyncio.gather(*(self.answer(m, "") for m in messages))
        started = time.perf_counter()
        outcomes = await self._client.feedback.submit_many(
            [
                {"generation_id": generation_id, "label": message.label, "author": author}
                for message, (_, generation_id) in zip(messages, answers, strict=True)
            ]
        )
        refused = [outcome for outcome in outcomes if not isinstance(outcome, Feedback)]
        if refused:
            raise RuntimeError(f"{len(refused)} corrections were refused: {refused[0]}")
        print(f"  {len(outcomes)} stored in {time.perf_counter() - started:.2f} s", flush=True)

    async def train(
        self, since: datetime, **hyperparameters: Unpack[Hyperparameters]
    ) -> TrainingJob:
        """Starts a job and returns it once it trains, or has ended."""
        job = await self._client.training.start(
            ADAPTER,
            recipe="sft",
            method_config={"r": 16, "lora_alpha": 32},
            dataset={
                "selection": {"tasks": [TASK], "format": "classification", "after": since},
                "scrub": False,  # a telephone number is a sign of spam
            },
            hyperparameters=hyperparameters,
            gate={"few_shot": 2, "max_examples": 100},
        )
        async with aclosing(self._client.training.watch(job.id)) as updates:
            async for job in updates:
                if job.progress.phase == "training" and job.progress.step > 0:
                    break
        return job

    async def finish(self, job: TrainingJob) -> TrainingJob:
        """Follows a job to its end."""
        shown, last = 0.0, job
        async with aclosing(self._client.training.watch(job.id)) as updates:
            async for last in updates:
                if time.monotonic() - shown > SHOW_EVERY_S:
                    shown = time.monotonic()
                    at = last.progress
                    print(
                        f"  {at.phase}: step {at.step} of {at.total_steps}, loss {at.loss:.3f}, "
                        f"{at.tokens_per_second:.0f} tokens/s, {at.remaining_s or 0:.0f} s to go",
                        flush=True,
                    )
        print(f"  {last.state.value}: {last.version} {last.message}", flush=True)
        return last

    async def latency_while(self, job: TrainingJob) -> tuple[TrainingJob, Gaps]:
        """Follows a job to its end; meanwhile measures now and then, while it trains."""
        gaps = Gaps()
        following = asyncio.create_task(self.finish(job))
        while not following.done():
            state = await self._client.training.get(job.id)
            if state.progress.phase == "training":
                gaps.add(await measure_gaps(self._client, streams=STREAMS, seconds=8))
            await asyncio.wait([following], timeout=20)
        return await following, gaps

    async def report(self, job: TrainingJob) -> str:
        return (await self._client.training.report(job.id)).markdown


async def walk(client: AsyncClient, demo: Demo, num_corrections: int) -> dict[str, object]:
    started = time.monotonic()
    messages = sms_spam.load_messages()
    test, others = sms_spam.split(messages, num_test=NUM_TEST, num_train=4000)
    spam = [m for m in others if m.label == SPAM][: int(num_corrections * SPAM_SHARE)]
    ham = [m for m in others if m.label == HAM]
    corrected = spam + ham[: num_corrections - len(spam)]
    random.Random(0).shuffle(corrected)
    digest = (await client.model()).digest

    print(f"1. The base on {NUM_TEST} messages")
    before = await demo.quality(test, "")
    print(f"  {before}")
    print(f"2. People correct it on {len(corrected)} others")
    await demo.correct(corrected, "people")
    idle = await measure_gaps(client, streams=STREAMS, seconds=20)
    print("3. A job trains, while the server goes on serving")
    job = await demo.train(
        datetime.fromtimestamp(0, UTC), epochs=2, batch_size=8, learning_rate=5e-4
    )
    job, busy = await demo.latency_while(job)
    if job.state != JobState.SUCCEEDED:
        raise RuntimeError(f"the job did not succeed: {job.message}\n{await demo.report(job)}")
    ratio = busy.percentile(99) / idle.percentile(99)
    print(
        f"  idle: {idle.tokens_per_s:.0f} tokens/s, p50 {idle.percentile(50):.1f} ms, "
        f"p99 {idle.percentile(99):.1f} ms\n"
        f"  training: {busy.tokens_per_s:.0f} tokens/s, p50 {busy.percentile(50):.1f} ms, "
        f"p99 {busy.percentile(99):.1f} ms; ratio {ratio:.2f}"
    )
    print("4. The gate's report\n" + await demo.report(job))
    print(f"5. {job.version} is live: the {NUM_TEST} messages again")
    after = await demo.quality(test, ADAPTER)
    print(f"  {after}")

    print(f"6. {NUM_WRONG} wrong corrections, and a job that learns from them")
    since = datetime.now(UTC)
    chance = random.Random(1)
    rest = ham[len(corrected) : len(corrected) + NUM_WRONG]
    await demo.correct([sms_spam.Message(m.text, chance.choice(LABELS)) for m in rest], "mischief")
    bad = await demo.finish(await demo.train(since, epochs=2, batch_size=8, learning_rate=5e-4))
    if bad.state != JobState.REFUSED:
        raise RuntimeError(f"the gate let a bad candidate pass: {bad.message}")
    live = await client.adapters.get(ADAPTER)
    print(f"  version {live.live_version} is live still")

    print("7. Someone makes the bad candidate live by hand; a rollback")
    version = int(bad.version.partition("@")[2])
    await client.adapters.update(ADAPTER, live_version=version)
    print(f"  version {version}: {await demo.quality(test[:100], ADAPTER)}")
    live = await client.adapters.rollback(ADAPTER)
    print(f"  version {live.live_version}: {await demo.quality(test[:100], ADAPTER)}")

    model = await client.model(recompute_digest=True)
    return {
        "before": asdict(before),
        "after": asdict(after),
        "p99_ratio_while_training": round(ratio, 3),
        "seconds": round(time.monotonic() - started, 1),
        "digest_unchanged": model.digest == digest,
    }


async def run(folder: Path, num_corrections: int) -> dict[str, object]:
    with running_process(folder / "data", "--training-threads", "2") as server:
        async with AsyncClient(server.target) as client:
            await ready(client)
            demo = Demo(client)
            return await walk(client, demo, num_corrections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corrections", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(asyncio.run(run(Path(scratch), arguments.corrections))))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
