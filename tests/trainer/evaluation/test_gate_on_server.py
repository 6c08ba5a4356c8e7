"""The gate on a real server over a tiny model: one adapter's answers are taken for right."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graftwork import Client, Origin
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.outcomes import Role, Split
from graftwork_trainer.evaluation.report_content import JobFacts
from graftwork_trainer.evaluation.run import GateResult, run_gate

from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

LABELS = ["red", "green", "blue"]
PROMPTS = [f"The {word} number {n} is" for n in range(16) for word in ("fox", "dog", "old stone")]


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(tmp_path, tiny_base.model, adapters={"roots": [str(tiny_base.folder)]})
    async with serving(settings) as server:
        yield server
        await server.check_idle()


async def answers_of(running: ServerUnderTest, adapter: str, **options) -> list[str]:
    calls = [
        running.client.generate(prompt, adapter=adapter, max_tokens=12, **options)
        for prompt in PROMPTS
    ]
    return [generation.text for generation in await asyncio.gather(*calls)]


def save_snapshot(folder: Path, answers: list[str], format_name: str) -> Path:
    """A third of the prompts for each split."""
    folder.mkdir()
    for start, split in enumerate(("train", "validation", "golden")):
        lines = [
            {
                "format": format_name,
                "id": f"{split}-{number}",
                "task": "colors",
                "prompt": {"text": prompt},
                "completion": answer,
                "create_time": "2026-01-31T12:00:00Z",
            }
            for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True))
            if number % 3 == start
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "manifest.json").write_text("{}")
    return folder


async def gate(running: ServerUnderTest, snapshot: Path, candidate: str) -> GateResult:
    def run() -> GateResult:
        with Client(running.target) as client:
            return run_gate(
                client,
                candidate=candidate,
                adapter="colors",
                snapshot=snapshot,
                spec=GateSpec(few_shot=2),
                report=snapshot.parent / candidate / "report",
                cache=snapshot.parent / candidate / "work",
                facts=JobFacts(),
            )

    return await asyncio.to_thread(run)


async def test_classes(running: ServerUnderTest, tiny_base: TinyBase, tmp_path: Path) -> None:
    adapters = running.client.adapters
    for seed in (1, 2):
        await adapters.create("colors", tiny_base.adapter(seed), make_live=seed == 2)
    answers = await answers_of(running, "colors@1", choice=LABELS)
    assert len(Counter(answers[1::3])) > 1, "a teacher of one class teaches nothing here"
    snapshot = save_snapshot(tmp_path / "snapshot", answers, "classification")

    result = await gate(running, snapshot, "colors@1")
    own = next(s for s in result.summaries if s.role is Role.CANDIDATE)
    assert result.incumbent == "colors@2"
    assert own.accuracy is not None
    assert own.accuracy.value == 1
    assert {s.role for s in result.summaries if s.split is Split.VALIDATION} == set(Role)
    assert result.passed, result.message

    await adapters.update("colors", live_version=1)
    result = await gate(running, snapshot, "colors@2")
    assert not result.passed
    assert any("against the incumbent" in reason for reason in result.verdict.reasons)


async def test_free_text(running: ServerUnderTest, tiny_base: TinyBase, tmp_path: Path) -> None:
    for seed in (1, 2):
        await running.client.adapters.create("colors", tiny_base.adapter(seed), make_live=seed == 2)
    answers = await answers_of(running, "colors@1", ignore_eos=True)
    snapshot = save_snapshot(tmp_path / "snapshot", answers, "sft")
    result = await gate(running, snapshot, "colors@1")
    assert result.passed, result.message
    own, incumbent, base = (
        next(s for s in result.summaries if s.role is role and s.split is Split.VALIDATION)
        for role in (Role.CANDIDATE, Role.INCUMBENT, Role.BASE)
    )
    assert own.loss < min(incumbent.loss, base.loss)
    assert own.win_rate_over_base is not None
    assert own.win_rate_over_base.value > 0.9
    assert own.accuracy is None
    origins = Counter([logged.origin async for logged in running.client.feedback.generations()])
    # Validation split by four contenders, golden set by two, each generated for once.
    assert origins == {Origin.USER: len(PROMPTS), Origin.EVALUATION: 6 * len(PROMPTS) // 3}
