"""`graftwork feedback` against a server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from graftwork.cli import main
from graftwork.cli.datasets import LineError, parse_line
from graftwork.types import Message

from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.tiny_serving import TinyBase, one_torch_thread, tiny_base

__all__ = ["one_torch_thread", "tiny_base"]

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def running(tiny_base: TinyBase, tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    async with serving(tiny_settings(tmp_path, tiny_base.model)) as server:
        yield server


@pytest.fixture
def run(running: ServerUnderTest) -> Run:
    async def invoke(*args: str, fails: bool = False) -> Result:
        command = ["--target", running.target, *args]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert (result.exit_code != 0) is fails, result.output
        return result

    return invoke


async def test_a_generation_is_corrected_by_its_id(run: Run) -> None:
    made = await run("generate", "hi", "--max-tokens", "2", "--task", "talk", "--show-ids")
    generation_id = made.stderr.strip()
    given = await run("feedback", "submit", generation_id, "--correction", "yes", "--author", "ada")
    listed = await run("feedback", "list", "--task", "talk")
    assert given.stdout.strip() in listed.stdout
    assert f"generation {generation_id}" in listed.stdout
    logged = json.loads((await run("feedback", "generations", "--json")).stdout)
    assert [one["id"] for one in logged] == [generation_id]


async def test_a_repeated_submission_says_how_to_replace(run: Run) -> None:
    first = await run("feedback", "submit", "--prompt", "a", "--task", "t", "--label", "x")
    again = await run(
        "feedback", "submit", "--prompt", "a", "--task", "t", "--label", "y", fails=True
    )
    assert first.stdout.strip() in again.stderr
    assert "--supersedes" in again.stderr


async def test_a_data_set_is_taken_in_once(run: Run, tmp_path: Path) -> None:
    lines = [
        {"prompt": "2 + 2", "completion": "4"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"prompt": "colour?", "chosen": "blue", "rejected": "loud", "margin": 2},
        {"prompt": "win a prize", "label": "spam", "task": "other"},
        {"text": "see you", "label": "ham"},
        {"prompt": "q", "completion": "a", "label": False},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    taken = await run("feedback", "import", str(path), "--task", "mixed", "--json")
    assert json.loads(taken.stdout) == {
        "taken": {"demonstration": 2, "preference": 1, "label": 2, "thumbs": 1},
        "refused": {},
    }
    again = await run("feedback", "import", str(path), "--task", "mixed")
    assert "6 refused: 6 FEEDBACK_EXISTS" in again.stdout
    await run("feedback", "import", str(path), "--task", "mixed", "--strict", fails=True)
    target = tmp_path / "out.jsonl"
    await run("feedback", "export", "classification", "-o", str(target))
    examples = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(one["task"], one["completion"]) for one in examples] == [
        ("other", "spam"),
        ("mixed", "ham"),
    ]


async def test_a_bad_line_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n{"text": "a"}\n')
    result = await run("feedback", "import", str(path), fails=True)
    assert f"{path}, line 2: has text; wanted are prompt and completion" in result.stderr


async def test_deletion(run: Run) -> None:
    made = await run("generate", "hi", "--max-tokens", "2", "--show-ids")
    generation_id = made.stderr.strip()
    await run("feedback", "submit", generation_id, "--up", "--author", "ada")
    await run("feedback", "delete", fails=True)
    result = await run("feedback", "delete", "--author", "ada", "--yes")
    assert result.stdout == "1 generations, 1 items of feedback\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nope", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "must end with the assistant's"),
        ('{"prompt": [], "completion": "a"}', "prompt: a text or a list of messages"),
        ('{"prompt": "p", "completion": "a", "label": "x"}', "true or false"),
        ('{"prompt": "p", "label": 1.5}', "a text or a whole number"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": "c"}', "margin: not a number"),
        ('{"text": "p", "label": "x", "task": 3}', "task: a text is wanted"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, message: str) -> None:
    with pytest.raises(LineError, match=message):
        parse_line(line.encode(), chat=False)


def test_conversations_that_part_last_are_preferences() -> None:
    turns = [{"role": "user", "content": "q"}]
    line = json.dumps(
        {
            "chosen": [*turns, {"role": "assistant", "content": "a"}],
            "rejected": [*turns, {"role": "assistant", "content": "b"}],
        }
    )
    options = parse_line(line.encode(), chat=False)
    assert options["prompt"] == [Message("user", "q")]
    assert options["preference"].chosen.text == "a"
