"""The gate of reward models over a fake client, and what rollouts add to a report."""

import json
from types import SimpleNamespace

import pytest
from graftwork.types import Classification, CompletionScore
from graftwork_trainer.evaluation.errors import NothingToEvaluate
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.report_content import JobFacts
from graftwork_trainer.evaluation.reward_gate import run_reward_gate
from graftwork_trainer.evaluation.rollout_report import add_rollouts


class FakeClient:
    """Reward models that are functions of the answer."""

    def __init__(self, models, live=0, labels=("LABEL_0",)) -> None:
        self.models = models
        self.adapters = SimpleNamespace(
            get=lambda _: SimpleNamespace(live_version=live),
            get_version=lambda selector: SimpleNamespace(selector=selector, labels=labels),
        )

    def score(self, prompt, completions, *, adapter):
        rewards = [self.models[adapter](text) for text in completions]
        scores = [CompletionScore((), 0.0, Classification((), reward)) for reward in rewards]
        return SimpleNamespace(scores=scores)


def example(number, **answers):
    return {
        "format": "reward",
        "id": f"e{number}",
        "task": "t",
        "prompt": {"text": "Say: "},
        "create_time": "2026-01-01T00:00:00Z",
        **answers,
    }


@pytest.fixture
def snapshot(tmp_path):
    """Twenty pairs whose chosen answer is longer, four where it is not, and a tie."""
    pairs = [example(n, chosen="long " * (n + 2), rejected="x") for n in range(20)]
    pairs += [example(n, chosen="y", rejected="long one") for n in range(20, 24)]
    pairs.append(example(24, chosen="a", rejected="b", tie=True))
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "validation.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    return folder


def gate(client, snapshot, candidate="r@2", **spec):
    report = snapshot.parent / "report"
    result = run_reward_gate(
        client, candidate=candidate, adapter="r", snapshot=snapshot, spec=GateSpec(**spec),
        report=report, facts=JobFacts(),
    )  # fmt: skip
    return result, json.loads((report / "report.json").read_text())


def by_length(text: str) -> float:
    return len(text) / 10


def constant(_: str) -> float:
    return 0.0


def test_a_model_that_is_mostly_right_passes(snapshot):
    result, report = gate(FakeClient({"r@2": by_length}), snapshot)
    assert result.passed
    assert result.candidate.accuracy.value == pytest.approx(20 / 24)
    assert 0 < result.candidate.calibration_error < 0.5
    assert "accuracy 0.833" in result.message
    assert report["passed"] is True
    assert (snapshot.parent / "report" / "margins.png").stat().st_size
    assert "r@2" in (snapshot.parent / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("models", "live", "spec", "reason"),
    [
        ({"r@2": constant}, 0, {}, "0.5 by chance"),
        ({"r@2": lambda text: -len(text)}, 0, {}, "0.5 by chance"),
        ({"r@2": lambda _: float("nan")}, 0, {}, "not finite"),
        ({"r@2": by_length}, 0, {"min_accuracy": 0.9}, "at least 0.9"),
        ({"r@2": constant, "r@1": by_length}, 1, {"min_accuracy": 0.4}, "0.833 of r@1"),
    ],
)
def test_a_model_that_is_not_good_enough_is_refused(snapshot, models, live, spec, reason):
    result, report = gate(FakeClient(models, live), snapshot, **spec)
    assert not result.passed
    assert reason in result.message
    assert report["passed"] is False


def test_another_kind_of_adapter_is_no_incumbent(snapshot):
    result, _ = gate(FakeClient({"r@2": by_length}, live=1, labels=()), snapshot)
    assert result.passed


def test_ties_alone_tell_nothing(snapshot):
    tie = example(0, chosen="a", rejected="b", tie=True)
    (snapshot / "validation.jsonl").write_text(json.dumps(tie) + "\n")
    with pytest.raises(NothingToEvaluate):
        gate(FakeClient({"r@2": by_length}), snapshot)


def test_rollouts_are_added_once(tmp_path):
    (tmp_path / "report.md").write_text("# Report\n")
    (tmp_path / "report.json").write_text("{}\n")
    keys = ("reward", "kl", "entropy", "length", "truncated", "sampler_gap", "skipped")
    history = [dict.fromkeys(keys, value) for value in (0.25, 0.5)]
    add_rollouts(tmp_path, history)
    add_rollouts(tmp_path, history)
    text = (tmp_path / "report.md").read_text()
    assert text.count("## Rollouts") == 1
    assert "| mean reward | 0.25 | 0.5 |" in text
    assert json.loads((tmp_path / "report.json").read_text())["rollouts"] == history
    assert (tmp_path / "rollouts.png").stat().st_size
