"""The load generator's pure parts."""

import itertools
import random
from pathlib import Path

import pytest
from graftwork.bench import (
    AllAtOnce,
    ClosedLoop,
    Distribution,
    Even,
    Fixed,
    GivenPrompts,
    Load,
    Normal,
    OneHot,
    Outcome,
    PlannedRequest,
    Poisson,
    Run,
    SyntheticPrompts,
    Uniform,
    Zipf,
    draw_requests,
    jain_index,
    parse_lengths,
    read_prompts,
    summarize,
)
from graftwork.types import Message


def test_poisson_gaps_are_exponential() -> None:
    times = list(itertools.islice(Poisson(4.0).due_times(random.Random(1)), 20_000))
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.03)
    longer = sum(gap > 0.25 for gap in gaps) / len(gaps)
    assert longer == pytest.approx(0.3679, abs=0.01)  # 1/e


def test_all_at_once_is_due_at_the_start() -> None:
    assert list(itertools.islice(AllAtOnce().due_times(random.Random(0)), 3)) == [0, 0, 0]


def test_popularity() -> None:
    assert Even().weights(3) == [1, 1, 1]
    assert Zipf(1.0).weights(4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert Zipf(0.0).weights(2) == [1, 1]
    assert OneHot(0.7).weights(4) == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert OneHot(0.7).weights(1) == [1]


def test_lengths_stay_in_their_range() -> None:
    chance = random.Random(0)
    uniform = {Uniform(3, 5).draw(chance) for _ in range(200)}
    assert uniform == {3, 4, 5}
    normal = [Normal(10, 5).draw(chance) for _ in range(5000)]
    assert sum(normal) / len(normal) == pytest.approx(10, abs=0.3)
    assert min(normal) == 1
    assert max(normal) <= Normal(10, 5).longest == 25
    assert Fixed(7).draw(chance) == Fixed(7).longest == 7


def test_lengths_are_parsed() -> None:
    assert parse_lengths("64") == Fixed(64)
    assert parse_lengths("16-128") == Uniform(16, 128)
    assert parse_lengths("64~20.5") == Normal(64, 20.5)


@pytest.mark.parametrize("text", ["", "0", "-1", "5-3", "0-3", "0~2", "a", "1.5", "3~", "1-2-3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_lengths(text)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Poisson(0), "rate_per_s"),
        (lambda: ClosedLoop(0), "concurrency"),
        (lambda: Zipf(-1), "exponent"),
        (lambda: OneHot(1.5), "share"),
        (lambda: Load(ClosedLoop(1)), "num_requests"),
        (lambda: Load(AllAtOnce(), duration_s=1), "num_requests"),
        (lambda: Load(ClosedLoop(1), 0), "num_requests"),
        (lambda: Load(ClosedLoop(1), duration_s=0), "duration_s"),
    ],
)
def test_values_out_of_range_name_their_field(make, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        make()


ZIPF, ONE_TO_NINE = Zipf(1.0), Uniform(1, 9)


def requests(seed: int, popularity=ZIPF, lengths=ONE_TO_NINE) -> list[PlannedRequest]:
    prompts = SyntheticPrompts(Uniform(2, 4), range(100, 200))
    drawn = draw_requests(popularity, ["a", "b", "c"], prompts, lengths, seed=seed)
    return list(itertools.islice(drawn, 3000))


def test_the_seed_decides_what_is_drawn() -> None:
    assert requests(1) == requests(1)
    assert requests(1) != requests(2)


def test_one_choice_leaves_the_others_as_they_were() -> None:
    first, second = requests(1), requests(1, popularity=Even(), lengths=Fixed(3))
    assert [one.prompt for one in first] == [one.prompt for one in second]
    assert [one.adapter for one in first] != [one.adapter for one in second]


def test_requests_follow_the_popularity() -> None:
    drawn = [one.adapter for one in requests(3, popularity=OneHot(0.8))]
    shares = [drawn.count(name) / len(drawn) for name in "abc"]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ValueError, match=r"^adapters: "):
        next(draw_requests(Even(), [], GivenPrompts(["hi"]), Fixed(1), seed=0))


def test_prompts_are_read(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("one\n\ntwo\n")
    lines.write_text(
        '"one"\n{"prompt": "two"}\n{"messages": [{"role": "user", "content": "three"}]}\n'
    )
    assert read_prompts(text) == ["one", "two"]
    assert read_prompts(text, chat=True)[0] == [Message("user", "one")]
    assert read_prompts(lines) == ["one", "two", [Message("user", "three")]]


@pytest.mark.parametrize("line", ["{", "{}", "7", '""', '{"messages": [{"role": "user"}]}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'"good"\n{line}\n')
    with pytest.raises(ValueError, match="line 2: "):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)


def test_distribution() -> None:
    found = Distribution.of([4.0, 1.0, 3.0, 2.0])
    assert found == Distribution(
        mean=2.5, p50=2.5, p90=pytest.approx(3.7), p99=pytest.approx(3.97), max=4
    )
    assert Distribution.of([5.0]) == Distribution(5, 5, 5, 5, 5)
    assert Distribution.of([]) is None


def test_jain_index() -> None:
    assert jain_index([3, 3, 3]) == pytest.approx(1)
    assert jain_index([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain_index([1, 2, 3]) == pytest.approx(36 / 42)
    assert jain_index([0, 0]) == 1
    with pytest.raises(ValueError, match=r"^shares: "):
        jain_index([])


def outcome(adapter: str, due_s: float, messages: list[float], error: str = "") -> Outcome:
    return Outcome(
        PlannedRequest(adapter, "hi", 4),
        due_s,
        sent_s=due_s + 0.001,
        message_s=messages,
        end_s=messages[-1] if messages else due_s + 1,
        prompt_tokens=0 if error else 10,
        output_tokens=len(messages),
        error=error,
    )


def test_a_report() -> None:
    fast, slow = [1.1, 1.2, 1.3, 1.4], [0.4, 0.8, 1.2, 1.6]
    refused = outcome("slow", 0.0, [], "RESOURCE_EXHAUSTED")
    run = Run([outcome("fast", 1.0, fast), outcome("slow", 0.0, slow), refused], seconds=2.0)
    report = summarize(run)
    assert (report.num_requests, report.num_completed) == (3, 2)
    assert report.errors == {"RESOURCE_EXHAUSTED": 1}
    assert (report.requests_per_s, report.output_tokens_per_s) == (1.0, 4.0)
    assert report.total_tokens_per_s == 14.0
    assert report.ttft_ms.mean == pytest.approx(250)
    assert report.inter_token_ms.max == pytest.approx(400)
    assert report.e2e_ms.max == pytest.approx(1600)
    assert report.send_lag_ms.p99 == pytest.approx(1)
    assert report.fairness.best_ttft.adapter == "fast"
    assert report.fairness.worst_ttft.mean_ms == pytest.approx(400)
    # 4 tokens in 0.4 s; 4 tokens in 2.6 s, of 8 that were asked for.
    assert report.fairness.jain_index == pytest.approx(jain_index([10, 4 / 2.6 / 2]))
    assert report.to_json()["fairness"]["best_ttft"] == {"adapter": "fast", "mean_ms": 100.0}


def test_a_report_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing was sent"):
        summarize(Run([], 0.0))
    refused = summarize(Run([outcome("", 0.0, [], "UNAVAILABLE")], 1.0))
    assert refused.ttft_ms is refused.fairness.best_ttft is None
    assert refused.fairness.jain_index == 1
