"""What the comparison with the peers makes of times, tables and rounds."""

import io
import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers.batched_bench import parse_batched_bench, row_with
from benchmarks.peers.install import needed
from benchmarks.peers.report import Comparison, mean_common_prefix, write_report
from benchmarks.peers.runs import (
    MEASURES,
    Batch,
    Round,
    Run,
    Workload,
    measure_round,
)
from benchmarks.peers.worker import parse_run, serve
from benchmarks.peers.worker_process import PeerError, running_worker

TABLE = """\
llama_batched_bench: n_kv_max = 16384, n_batch = 2048, n_ubatch = 512

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    57 |     64 |    1 |    121 |    0.286 |   199.34 |    1.627 |    39.34 |    1.913 |    63.26 |
|    57 |     64 |   16 |   1936 |    2.744 |   332.36 |   18.015 |    56.84 |   20.759 |    93.26 |

llama_perf_context_print: load time = 100 ms
"""


def test_the_table_of_batched_bench() -> None:
    rows = parse_batched_bench(TABLE)
    assert [row.sequences for row in rows] == [1, 16]
    together = row_with(rows, prompt_tokens=57, sequences=16)
    assert (together.prefill_tokens_per_s, together.decode_tokens_per_s) == (332.36, 56.84)
    assert together.new_tokens == 64


def test_a_point_that_was_left_out_is_missed() -> None:
    with pytest.raises(ValueError, match="no 16 sequences of 512"):
        row_with(parse_batched_bench(TABLE), prompt_tokens=512, sequences=16)


@pytest.mark.parametrize("text", ["failed to load", TABLE.replace("S_TG t/s", "TG t/s  ")])
def test_another_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the table"):
        parse_batched_bench(text)


def test_speeds_of_a_run() -> None:
    # The first decodes alone from 1 to 2 s, both from 2 to 4 s.
    run = Run([[1] * 4, [2] * 4], [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    assert run.throughput == pytest.approx(8 / 5)
    assert run.decode_throughput == pytest.approx(2.0)
    assert run.first_token_s == 1.0


def test_tokens_that_come_together_all_count() -> None:
    run = Run([[1] * 5], [[1.0, 2.0, 2.0, 3.0, 3.0]])
    assert run.decode_throughput == pytest.approx(2.0)


def test_requests_that_never_decode_together_have_no_such_speed() -> None:
    run = Run([[1, 1], [2, 2]], [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="at no time"):
        _ = run.decode_throughput


def test_a_token_without_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="time at which it came"):
        Run([[1, 2]], [[1.0]])


def steady(step_s: float, prefill_s: float = 1.0):
    """Generates the row's adapter, or -1, `new_tokens` times, a step apart."""

    def generate(batch: Batch) -> Run:
        chosen = [-1 if index is None else index for index in batch.adapters]
        times = [prefill_s + step_s * step for step in range(batch.new_tokens)]
        return Run([[index] * batch.new_tokens for index in chosen], [times] * len(chosen))

    return generate


WORKLOAD = Workload([[1, 2]] * 4, list(range(20)), num_adapters=4, new_tokens=5)


def test_a_round_asks_each_engine_for_what_is_its_own() -> None:
    found = measure_round(steady(0.5), steady(0.25), WORKLOAD)
    assert found.figures == pytest.approx(
        {
            "mixed": 20 / 3,
            "base": 20 / 2,
            "one_lora": 20 / 3,
            "single_stream": 4,
            "prefill": 20,
            "decode16": 16,
        }
    )
    assert found.mixed_token_ids == [[0] * 5, [1] * 5, [2] * 5, [3] * 5]
    assert found.base_token_ids == [[-1] * 5] * 4


def round_of(speed: float, answers: list[list[int]] | None = None) -> Round:
    return Round(dict.fromkeys(MEASURES, speed), answers or [[1, 2, 3]], [[1, 2, 3]])


def test_the_report(tmp_path: Path) -> None:
    comparison = Comparison(
        rounds={
            "graftwork": [round_of(speed) for speed in (90.0, 300.0, 100.0)],
            "vllm": [],
            "peft": [round_of(40.0, [[1, 2, 4]])],
        },
        reasons={"vllm": "not installed"},
    )
    assert list(comparison.table()) == list(MEASURES)
    assert comparison.table()["mixed"] == {"graftwork": 100.0, "vllm": None, "peft": 40.0}
    assert comparison.ratios()["mixed"] == {"peft": 2.5}
    assert comparison.agreement() == {"graftwork": 2.0}
    write_report(comparison, tmp_path / "out", {"repeats": 3})
    document = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert document["medians"] == comparison.table()
    assert document["reasons"] == {"vllm": "not installed"}
    assert [each["base"] for each in document["rounds"]["graftwork"]] == [90.0, 300.0, 100.0]
    assert document["machine"]
    assert (tmp_path / "out" / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_common_prefixes() -> None:
    assert mean_common_prefix([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [9, 2, 3]]) == 1.5


def test_a_worker_answers_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"prompts": [[1]], "adapters": [3], "new_tokens": 2}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(line * 2))
    answers = io.StringIO()
    serve(steady(1.0), answers)
    greeting, *runs = answers.getvalue().splitlines()
    assert json.loads(greeting) == "ready"
    assert [parse_run(run) for run in runs] == [Run([[3, 3]], [[1.0, 2.0]])] * 2


def test_a_worker_that_dies_is_an_error_with_its_log(tmp_path: Path) -> None:
    started = running_worker(
        "the peer", Path(sys.executable), "no_such_module", [], log=tmp_path / "log"
    )
    with pytest.raises(PeerError, match=r"(?s)the peer ended.*no_such_module"), started:
        pass


def test_what_is_installed_with_vllm() -> None:
    kept = needed(
        [
            'torch==2.13.0+cpu; platform_machine != "none"',
            "torchvision",
            "opencv-python-headless>=4.13.0",
            "mistral_common[image]>=1.11.6",
            'pandas; extra == "bench"',
            'six>=1.16; python_version < "3"',
            "fastapi[standard]<0.137",
        ],
        torch="2.13.0",
    )
    assert kept == ["torch==2.13.0", "mistral_common>=1.11.6", "fastapi[standard]<0.137"]
