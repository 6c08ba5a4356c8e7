"""Real plug-ins of an installed package, in real processes."""

import os
import signal
import sys
import time

import pytest
from graftwork_trainer.rewards.errors import RewardUnavailable, UnknownPlugin
from graftwork_trainer.rewards.isolated import json_schema_reward, plugin_reward
from graftwork_trainer.rewards.reward import Unscored

from tests.trainer.rewards.answers import ASKED, TEXT_PROMPT, answer

PLUGINS = """
import os, sys, time

def politeness(prompt, completion):
    print("a plug-in may print")
    return completion.count("please")

def echo_prompt(prompt, completion):
    return float(completion == repr(prompt))

def difficult(prompt, completion):
    match completion:
        case "raise": raise KeyError("nothing here")
        case "hang": time.sleep(60)
        case "exit": sys.exit(3)
        case "crash": os.abort()
        case "nan": return float("nan")
        case "text": return "good"
        case "pid": return os.getpid()
    return 1.0

def hangs(prompt, completion):
    time.sleep(60)

number = 3
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A package with reward plug-ins, as pip would install it."""
    (tmp_path / "kind_words.py").write_text(PLUGINS)
    info = tmp_path / "kind_words-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kind-words\nVersion: 1.0\n")
    names = ["politeness", "echo_prompt", "difficult", "hangs", "number"]
    lines = [f"{name} = kind_words:{name}" for name in names]
    lines += ["broken = kind_words:missing", "absent = not_installed:reward"]
    (info / "entry_points.txt").write_text("[graftwork.rewards]\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.mark.usefixtures("plugins")
async def test_a_plugin_scores_and_may_print():
    reward = plugin_reward("politeness", timeout_s=20)
    try:
        assert await reward.score([answer("please, please"), answer("now!")]) == [2, 0]
    finally:
        await reward.close()


@pytest.mark.usefixtures("plugins")
async def test_prompts_reach_a_plugin_as_plain_values():
    reward = plugin_reward("echo_prompt", timeout_s=20)
    messages = [{"role": "user", "content": "Say something nice."}]
    try:
        scores = await reward.score(
            [
                answer(repr("Once upon"), prompt=TEXT_PROMPT),
                answer(repr(messages), prompt=ASKED),
            ]
        )
    finally:
        await reward.close()
    assert scores == [1, 1]


@pytest.mark.usefixtures("plugins")
async def test_whatever_a_plugin_does_costs_its_answer_alone():
    reward = plugin_reward("difficult", timeout_s=1.5)
    wanted = {
        "raise": "raised", "hang": "timed_out", "exit": "raised", "crash": "raised",
        "nan": "not_finite", "text": "raised",
    }  # fmt: skip
    begun = time.monotonic()
    try:
        scores = await reward.score([answer(text) for text in ("fine", *wanted, "fine")])
    finally:
        await reward.close()
    assert scores[0] == scores[-1] == 1
    for score, reason in zip(scores[1:-1], wanted.values(), strict=True):
        assert isinstance(score, Unscored)
        assert score.reason == reason
    assert "KeyError: 'nothing here'" in scores[1].detail
    assert time.monotonic() - begun < 30


@pytest.mark.usefixtures("plugins")
async def test_closing_ends_the_process():
    reward = plugin_reward("difficult", timeout_s=20)
    (pid,) = await reward.score([answer("pid")])
    await reward.close()
    await reward.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), signal.SIGCONT)


@pytest.mark.usefixtures("plugins")
async def test_a_plugin_that_always_hangs_ends_the_waiting():
    reward = plugin_reward("hangs", timeout_s=0.1)
    with pytest.raises(RewardUnavailable, match="5 times in a row"):
        await reward.score([answer("a")] * 100)


@pytest.mark.usefixtures("plugins")
async def test_a_plugin_that_is_not_installed_is_named():
    with pytest.raises(UnknownPlugin, match=r'"rudeness".*difficult, echo_prompt'):
        await plugin_reward("rudeness", timeout_s=1).score([answer("a")])


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "why"),
    [("broken", "AttributeError"), ("absent", "not_installed"), ("number", "int is not callable")],
)
async def test_a_plugin_that_cannot_be_loaded_says_why(name, why):
    with pytest.raises(RewardUnavailable, match=f'"{name}" cannot be loaded: .*{why}'):
        await plugin_reward(name, timeout_s=1).score([answer("a")])


async def test_a_schema_takes_json_that_fits():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reward = json_schema_reward(schema, timeout_s=20)
    texts = ['{"n": 3}', '{"n": "3"}', "{}", "n = 3", "[NaN]", "[" * 100_000, ""]
    try:
        assert await reward.score([answer(text) for text in texts]) == [1, 0, 0, 0, 0, 0, 0]
    finally:
        await reward.close()


async def test_a_schema_with_a_pattern_that_backtracks_is_given_up():
    reward = json_schema_reward({"pattern": "^(a+)+$"}, timeout_s=1)
    try:
        slow, fast = await reward.score([answer('"' + "a" * 40 + 'b"'), answer('"aa"')])
    finally:
        await reward.close()
    assert isinstance(slow, Unscored)
    assert fast == 1


async def test_a_schema_that_refers_elsewhere_is_not_fetched():
    reward = json_schema_reward({"$ref": "http://localhost:1/schema"}, timeout_s=20)
    try:
        (score,) = await reward.score([answer("{}")])
    finally:
        await reward.close()
    assert isinstance(score, Unscored)
    assert "Unresolvable" in score.detail


def test_what_is_no_schema_is_refused():
    with pytest.raises(ValueError, match="no JSON schema"):
        json_schema_reward({"type": "nothing"}, timeout_s=1)
