"""`graftwork feedback compare` against a server: a person's lines on stdin, and judges."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from graftwork import Message
from graftwork.cli import main
from graftwork.feedback_types import Feedback, Preference, Ranking, Source

from tests.support.judge import Judge, judging
from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.server_process import free_port
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

Run = Callable[..., Awaitable[Result]]
SHORT = ("--max-tokens", "6")


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    settings = tiny_settings(
        tmp_path, tiny_base.model, adapters={"roots": [str(tiny_base.folder), str(tmp_path)]}
    )
    async with serving(settings) as server:
        yield server


@pytest.fixture
def compare(running: ServerUnderTest) -> Run:
    async def invoke(*args: str, lines: str = "", code: int = 0) -> Result:
        command = ["--target", running.target, "feedback", "compare", *SHORT, *args]
        result = await asyncio.to_thread(CliRunner().invoke, main, command, input=lines)
        assert result.exit_code == code, result.output
        return result

    return invoke


async def given(running: ServerUnderTest) -> list[Feedback]:
    """Oldest first."""
    return [item async for item in running.client.feedback.list()][::-1]


async def test_the_better_answer_is_a_preference_of_its_group(
    compare: Run, running: ServerUnderTest
) -> None:
    result = await compare("hello", "--task", "talk", "--author", "ada", lines="2 it is kinder\n")
    (item,) = await given(running)
    (group,) = {g.group_id async for g in running.client.feedback.generations(task="talk")}
    assert (item.group_id, item.author, item.comment) == (group, "ada", "it is kinder")
    assert item.source is Source.HUMAN
    assert isinstance(item.value, Preference)
    assert result.stdout.splitlines() == [f"{item.id}  2 (base) > 1 (base)", "1 compared"]
    chosen = [
        g async for g in running.client.feedback.generations(ids=[item.value.chosen.generation_id])
    ]
    shown = result.stderr.replace("\n", "")
    assert "hello" in shown
    assert "an answer is cut off, and data sets leave it out" in shown
    assert chosen[0].sampling["temperature"] == 1.0


async def test_keys(compare: Run, running: ServerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\nthree\nfour\n")
    result = await compare("--prompts", str(path), lines="7\nx\nt\ns\n1\nq\n")
    assert [item.value.tie for item in await given(running)] == [True, False]
    assert result.stdout.endswith("2 compared, 1 skipped\n")
    assert "'7' is none of 1, 2, t, s and q" in result.stderr
    # The end of the input ends it as well.
    assert (await compare("five")).stdout == "0 compared\n"


async def test_more_than_two_answers(compare: Run, running: ServerUnderTest) -> None:
    await compare("hello", "-n", "4", lines="3\n")
    best = [item.value for item in await given(running)]
    assert len(best) == 3
    assert len({value.chosen for value in best}) == 1
    assert len({value.rejected for value in best}) == 3
    await compare("hello again", "-n", "3", lines="t\n")
    last = (await given(running))[-1].value
    assert isinstance(last, Ranking)
    assert [len(rank) for rank in last.ranks] == [3]


async def test_two_adapters_are_compared_blind(
    compare: Run, running: ServerUnderTest, tiny_base: TinyBase, tmp_path: Path
) -> None:
    for name, seed in (("poet", 1), ("coder", 2)):
        await running.client.adapters.create(name, tiny_base.adapter(seed))
    path = tmp_path / "prompts.jsonl"
    prompts = [{"prompt": f"prompt {number}"} for number in range(8)]
    path.write_text("\n".join(map(json.dumps, prompts)))
    options = ("--prompts", str(path), "-a", "poet", "--against", "coder", "--seed", "5")
    result = await compare(*options, lines="1\n" * 8)
    told = [line.partition("  ")[2] for line in result.stdout.splitlines()[:-1]]
    # The first place tells nothing, though the seed is the same for all.
    assert set(told) == {"1 (poet@1) > 2 (coder@1)", "1 (coder@1) > 2 (poet@1)"}
    assert "poet" not in result.stderr
    assert "coder" not in result.stderr
    again = await compare(*options, lines="1\n" * 8)
    assert [line.partition("  ")[2] for line in again.stdout.splitlines()[:-1]] == told
    items = await given(running)
    generations = {g.id: g async for g in running.client.feedback.generations(task="poet")}
    assert len(generations) == 32
    assert all(str(generations[item.generation_id].served_by) == "poet@1" for item in items)


async def test_answers_that_read_the_same_are_passed_over(
    compare: Run, running: ServerUnderTest
) -> None:
    result = await compare("hello", "--temperature", "0", lines="1\n")
    assert result.stdout == "0 compared, 1 with identical answers\n"
    assert "all answers read the same" in result.stderr
    assert await given(running) == []


async def test_a_judge_decides(compare: Run, running: ServerUnderTest) -> None:
    judge = Judge(lambda text: float(len(text)))
    async with judging(judge) as target:
        await compare("hello", "--chat", "-n", "4", "--judge", target)
        await compare("hello", "--judge", f"grpc://{target}", "--seed", "3")
    ranking, preference = await given(running)
    assert ranking.source is preference.source is Source.MODEL
    assert judge.requests[0].conversation.messages[0].content == "hello"
    assert judge.requests[1].text == "hello"
    texts = {g.id: g.completion async for g in running.client.feedback.generations()}
    lengths = [{len(texts[a.generation_id]) for a in rank} for rank in ranking.value.ranks]
    assert all(len(rank) == 1 for rank in lengths)
    assert [max(rank) for rank in lengths] == sorted(map(max, lengths), reverse=True)
    value = preference.value
    difference = len(texts[value.chosen.generation_id]) - len(texts[value.rejected.generation_id])
    assert (value.margin or 0) == difference
    assert value.tie == (difference == 0)


async def test_a_judge_that_cannot_say(compare: Run, running: ServerUnderTest) -> None:
    async with judging(Judge(lambda _: None)) as target:
        result = await compare("hello", "--judge", target)
    assert result.stdout == "0 compared, 1 not judged\n"

    def broken(text: str) -> float:
        raise RuntimeError("out of order")

    async with judging(Judge(broken)) as target:
        result = await compare("hello", "--judge", target)
    assert result.stdout == "0 compared, 1 not judged\n"
    assert "out of order" in result.stderr
    assert await given(running) == []


async def test_a_judge_whose_scores_lie_further_apart_than_a_float_can_say(
    compare: Run, running: ServerUnderTest
) -> None:
    scores = iter((3e38, -3e38))
    async with judging(Judge(lambda _: next(scores))) as target:
        result = await compare("hello", "--judge", target)
    assert result.stdout.endswith("  1 (base) > 2 (base)\n1 compared\n")
    assert (await given(running))[0].value.margin == pytest.approx(3.4e38)


async def test_prompts_after_a_byte_order_mark(
    compare: Run, running: ServerUnderTest, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfhello\n")
    await compare("--prompts", str(path), lines="1\n")
    assert {g.input async for g in running.client.feedback.generations()} == {"hello"}


async def test_a_closed_stdin_is_an_error_of_usage(running: ServerUnderTest) -> None:
    command = [sys.executable, "-c", "from graftwork.cli import main; main()"]
    command += ["--target", running.target, "feedback", "compare", "hello"]
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", 'exec "$@" <&-', "sh", *command, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert (process.returncode, b"stdin is closed" in said) == (2, True), said


async def test_errors_are_one_line(
    compare: Run, running: ServerUnderTest, tiny_base: TinyBase, tmp_path: Path
) -> None:
    gone = f"localhost:{free_port()}"
    result = await compare("hello", "--judge", gone, code=1)
    assert f"error: the judge {gone} cannot be reached" in result.stderr
    await running.client.adapters.create("poet", tiny_base.adapter(1))
    result = await compare("hello", "--judge", "adapter:poet", code=1)
    assert 'adapter "poet" gives no reward' in result.stderr
    result = await compare("hello", "--judge", running.target, code=1)
    assert f"error: the judge {running.target}: Method not found" in result.stderr
    result = await compare("hello", "--judge", "http://there", code=1)
    assert "--judge: 'http://there' is no judge" in result.stderr
    result = await compare("hello", "-a", "nobody", code=1)
    assert "nobody" in result.stderr
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    result = await compare("--prompts", str(bad), lines="s\n", code=1)
    assert f"{bad}, line 2: prompt: a text or a list of messages" in result.stderr
    bad.with_suffix(".txt").write_bytes(b"a\n\xff\n")
    result = await compare("--prompts", str(bad.with_suffix(".txt")), lines="s\n", code=1)
    assert "bad.txt, line 2: 'utf-8' codec" in result.stderr
    command = ["--target", gone, "feedback", "compare", "hello"]
    result = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert (result.exit_code, f"cannot reach {gone}" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "a PROMPT, or --prompts, or --live"),
        (("hello", "--live", "poet"), "a PROMPT, or --prompts, or --live"),
        (("hello", "--every", "5"), "--every goes with --live"),
        (("--live", "poet", "--every", "nan"), "--every is not a number"),
        (("--live", "poet", "--every", "inf"), "not in the range"),
        (("--live", "poet", "-a", "poet"), "--live names the adapter"),
        (("hello", "--against", "poet", "-n", "3"), "--against compares one answer of each"),
        (("hello", "-n", "1"), "not in the range"),
    ],
)
async def test_options_that_do_not_go_together(
    compare: Run, args: tuple[str, ...], message: str
) -> None:
    assert message in (await compare(*args, code=2)).stderr


async def test_live_prompts_are_asked_about_once(
    compare: Run, running: ServerUnderTest, tiny_base: TinyBase
) -> None:
    client = running.client
    result = await compare("--live", "poet", lines="1\n")
    assert "no user has lately asked anything of poet" in result.stderr
    for text in ("first", "second", "second"):
        await client.generate([Message("user", text)], task="poet", max_tokens=2)
    result = await compare("--live", "poet", "--limit", "1", lines="1\n1\n")
    assert "poet has no live version yet: the base answers" in result.stderr
    assert "user: second" in result.stderr  # the newest
    assert result.stdout.endswith("  1 (base) > 2 (base)\n1 compared\n")

    await client.adapters.create("poet", tiny_base.adapter(1))
    result = await compare("--live", "poet", lines="1\n1\n")
    assert "user: first" in result.stderr
    assert "second" not in result.stderr
    assert result.stdout.endswith("  1 (poet@1) > 2 (poet@1)\n1 compared\n")
    assert (await compare("--live", "poet", lines="1\n")).stdout == "0 compared\n"


async def test_live_prompts_are_waited_for(compare: Run, running: ServerUnderTest) -> None:
    async with judging(Judge(lambda text: float(len(text)))) as target:
        options = ("--live", "poet", "--every", "0.05", "--limit", "3", "--judge", target)
        command = asyncio.create_task(compare(*options))
        for number in range(12):
            await running.client.generate(f"prompt {number}", task="poet", max_tokens=2)
            if command.done():
                break
        result = await command
    assert "3 compared" in result.stdout
    assert len(await given(running)) == 3
