"""`graftwork bench` against a server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from graftwork.cli import main

from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(
        tmp_path,
        tiny_base.model,
        adapters={"roots": [str(tiny_base.folder)]},
        engine={"max_queued_requests": 8, "max_num_sequences": 4},
    )
    async with serving(settings) as server:
        for seed, name in enumerate(("task-a", "task-b", "other")):
            await server.client.adapters.create(name, tiny_base.adapter(seed))
        yield server


@pytest.fixture
def run(running: ServerUnderTest) -> Run:
    async def invoke(*args: str, code: int = 0) -> Result:
        command = ["--target", running.target, "bench", *args]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert result.exit_code == code, result.output
        return result

    return invoke


def report_of(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout.splitlines()[-1])


async def test_a_closed_loop_over_adapters(run: Run, running: ServerUnderTest) -> None:
    options = "--concurrency 3 --requests 12 -a task-* --prompt-tokens 4-8 --output-tokens 5"
    report = report_of(await run(*options.split(), "--json"))
    assert (report["num_requests"], report["num_completed"], report["errors"]) == (12, 12, {})
    assert report["output_tokens"] == 60
    assert 12 * 4 <= report["prompt_tokens"] <= 12 * 8
    assert report["output_tokens_per_s"] == pytest.approx(60 / report["seconds"], rel=0.05)
    assert report["fairness"]["num_adapters"] == 2
    assert report["fairness"]["worst_ttft"]["adapter"] in ("task-a", "task-b")
    assert 0 < report["ttft_ms"]["p50"] <= report["e2e_ms"]["p50"]
    await running.check_idle()


async def test_arrivals_end_with_the_duration(run: Run) -> None:
    options = "--rate 40 --duration 1 --prompt-tokens 4 --output-tokens 1~1 --popularity zipf"
    report = report_of(await run(*options.split(), "--json"))
    assert 15 < report["num_requests"] < 75
    assert report["num_completed"] == report["num_requests"]
    assert report["fairness"]["num_adapters"] == 3


async def test_refusals_are_counted_by_code(run: Run) -> None:
    options = "--requests 60 --prompt-tokens 4 --output-tokens 16"
    report = report_of(await run(*options.split(), "--json"))
    refused = report["errors"]["RESOURCE_EXHAUSTED"]
    assert refused + report["num_completed"] == 60
    assert report["output_tokens"] == 16 * report["num_completed"]


async def test_the_table(run: Run) -> None:
    options = "--requests 6 --output-tokens 2 -a task-a -a other@1 --popularity hot --hot-share 0.5"
    lines = (await run(*options.split())).stdout.splitlines()
    assert lines[0].split()[:2] == ["requests", "6"]
    assert any(line.split()[:3] == ["to", "first", "token"] for line in lines)


async def test_prompts_come_from_a_file(run: Run, running: ServerUnderTest, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"abcdef"\n')
    options = ["--prompts", str(prompts), "--requests", "3", "--output-tokens", "2", "--json"]
    num_tokens = len((await running.client.tokenize("abcdef")).token_ids)
    report = report_of(await run(*options))
    assert (report["prompt_tokens"], report["num_completed"]) == (3 * num_tokens, 3)
    prompts.write_text("nonsense\n")
    assert "line 1: not JSON" in (await run(*options, code=1)).stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("-a nobody", 1, "no adapter with a live version matches 'nobody'"),
        ("-a other@9", 1, "other"),
        ("--prompt-tokens 9000000", 1, "--prompt-tokens: up to 9000000"),
        ("--output-tokens 9000000", 1, "--output-tokens: up to 9000000"),
        ("--output-tokens 8-2", 2, "below the shortest"),
        ("--rate 0", 2, "--rate"),
        ("--hot-share 1.5", 2, "--hot-share"),
        ("--rate 1 --concurrency 1", 2, "exclude one another"),
        ("--duration 1", 2, "--duration needs"),
        ("--zipf-exponent 1", 2, "needs --popularity zipf"),
        ("--popularity base -a other", 2, "has no --adapters"),
        ("--chat", 2, "--chat needs --prompts"),
    ],
)
async def test_bad_options(run: Run, options: str, code: int, message: str) -> None:
    assert message in (await run(*options.split(), code=code)).stderr


def test_no_server() -> None:
    result = CliRunner().invoke(main, ["--target", "localhost:1", "bench"])
    assert result.exit_code == 1
    assert "cannot reach localhost:1" in result.stderr
