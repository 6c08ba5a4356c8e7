import dataclasses
import os
from pathlib import Path

import pytest
import torch
from graftwork.status import InvalidFieldError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import check_base, lower
from graftwork_trainer.recipes.run import TrainingStopped, read_summary
from graftwork_trainer.recipes.sft import train_sft
from safetensors.torch import load_file

from tests.trainer.examples import make_run, write_examples


def test_it_learns_and_the_server_takes_it(written_base, tmp_path):
    base = written_base()
    reports = []
    run = make_run(base.load(), tmp_path, progress=reports.append)
    folder = train_sft(run)

    assert [r.step for r in reports] == list(range(1, 17))
    assert reports[-1].loss < reports[0].loss / 2
    assert reports[-1].total_steps == 16
    assert reports[-1].remaining_s == 0 < reports[0].remaining_s
    assert reports[-1].tokens_per_second > 0

    summary = read_summary(run.folder)
    assert (summary.method, summary.steps, summary.left_out) == ("LORA", 16, 0)
    assert (summary.train_examples, summary.validation_examples) == (32, 8)
    assert summary.validation_loss < reports[0].loss / 2
    assert list((run.folder / "tensorboard").iterdir())

    artifact = read_artifact(folder, AdapterLimits())
    assert check_base(artifact, base.served)
    assert lower(artifact, base.served, max_rank=64).rank == 16
    assert artifact.config.get("base_model_name_or_path", "there") is None


def test_the_base_stays_as_it_was(written_base, tmp_path):
    base = written_base()
    training = base.load()
    before = {name: t.clone() for name, t in training.model.state_dict().items()}
    train_sft(make_run(training, tmp_path, hyperparameters={"max_steps": 2}))
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert base.served.compute_digest() == base.served.digest
    assert base.served.digest_of(dict(base.served.tensors)) == base.served.digest


@pytest.mark.parametrize("stop_after", [1, 5, 8, 11])
def test_a_stopped_run_goes_on_to_the_same_result(written_base, tmp_path, stop_after):
    base = written_base().load()
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    config = {"lora_dropout": 0.2}
    whole = make_run(base, tmp_path / "whole", method_config=config)
    expected = load_file(train_sft(whole) / "adapter_model.safetensors")

    steps = []
    halves = make_run(
        base,
        tmp_path / "halves",
        method_config=config,
        progress=lambda report: steps.append(report.step),
        should_stop=lambda: len(steps) == stop_after,
    )
    with pytest.raises(TrainingStopped):
        train_sft(halves)
    assert not halves.adapter_folder.exists()
    torch.manual_seed(1234)  # another process has another state
    found = load_file(train_sft(halves) / "adapter_model.safetensors")
    assert steps == list(range(1, 17))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "stop_after"),
    [("ADALORA", 4), ("ADALORA", 13), ("P_TUNING", 5), ("VBLORA", 5), ("BOTTLENECK", 5)],
)
def test_other_methods_go_on_to_the_same_result(written_base, tmp_path, method, stop_after):
    base = written_base().load()
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole = make_run(base, tmp_path / "whole", method=method)
    expected = read_artifact(train_sft(whole), AdapterLimits())
    steps = []
    halves = make_run(
        base,
        tmp_path / "halves",
        method=method,
        progress=lambda report: steps.append(report.step),
        should_stop=lambda: len(steps) == stop_after,
    )
    with pytest.raises(TrainingStopped):
        train_sft(halves)
    found = read_artifact(train_sft(halves), AdapterLimits())
    assert found.config.get("rank_pattern", None) == expected.config.get("rank_pattern", None)
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-5)


def test_a_half_written_checkpoint_does_not_count(written_base, tmp_path):
    base = written_base().load()
    steps = []
    run = make_run(
        base,
        tmp_path,
        progress=lambda report: steps.append(report.step),
        should_stop=lambda: len(steps) == 6,
        checkpoint_interval_s=0.0,
    )
    with pytest.raises(TrainingStopped):
        train_sft(run)
    last = run.checkpoints_folder / "checkpoint-7"
    (last / "complete").unlink()
    (last / "optimizer.pt").write_bytes(b"half")
    train_sft(run)
    assert steps == [*range(1, 8), *range(7, 17)]


def test_a_checkpoint_is_on_the_disk_before_it_counts(written_base, tmp_path, monkeypatch):
    synced: dict[Path, bool] = {}  # whether the checkpoint counted by then
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        fsync(descriptor)
        synced.setdefault(path, (path.parent / "complete").exists())

    monkeypatch.setattr(os, "fsync", note)
    run = make_run(written_base().load(), tmp_path, should_stop=lambda: True)
    with pytest.raises(TrainingStopped):
        train_sft(run)
    last = run.checkpoints_folder / "checkpoint-1"
    files = [path for path in last.rglob("*") if path.is_file() and path.name != "complete"]
    assert files
    assert not any(synced[path] for path in files)
    assert {last, last.parent} <= synced.keys()


def test_a_finished_run_is_not_done_again(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, hyperparameters={"max_steps": 1})
    folder = train_sft(run)
    time = (folder / "adapter_config.json").stat().st_mtime_ns
    assert train_sft(run) == folder
    assert (folder / "adapter_config.json").stat().st_mtime_ns == time


def test_it_goes_on_from_a_version(written_base, tmp_path):
    base = written_base().load()
    first = train_sft(make_run(base, tmp_path))
    (first / "graftwork_prompt.json").write_text('{"system": "the"}')
    reports = []
    (tmp_path / "next").mkdir()
    run = make_run(base, tmp_path / "next", initial=first, progress=reports.append)
    second = train_sft(run)
    assert reports[0].loss < 4  # a new adapter starts at 7
    assert (second / "graftwork_prompt.json").read_text() == '{"system": "the"}'
    before = load_file(first / "adapter_model.safetensors")
    after = load_file(second / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(*(w[next(iter(w))] for w in (before, after)))


def test_an_initial_version_of_another_base_is_refused(written_base, tmp_path):
    first = train_sft(make_run(written_base().load(), tmp_path, hyperparameters={"max_steps": 1}))
    other = written_base("llama", "nf4").load()
    run = dataclasses.replace(make_run(other, tmp_path), initial=first, folder=tmp_path / "second")
    with pytest.raises(InvalidFieldError, match=r"initial_version: was trained on base sha256"):
        train_sft(run)


def test_long_examples_are_left_out(written_base, tmp_path):
    base = written_base().load()
    changes = {"max_steps": 1, "max_length": 26}
    run = make_run(base, tmp_path, hyperparameters=changes)
    train_sft(run)
    summary = read_summary(run.folder)
    assert 0 < summary.left_out < 32
    assert summary.train_examples + summary.left_out == 32


@pytest.mark.parametrize(
    ("count", "changes", "message"),
    [
        (0, {}, "dataset: holds no example"),
        (4, {"max_length": 4}, r"hyperparameters\.max_length: is 4 tokens, and each of the 4"),
    ],
)
def test_nothing_to_train_on_is_an_error(written_base, tmp_path, count, changes, message):
    run = make_run(written_base().load(), tmp_path, hyperparameters=changes)
    write_examples(run.train, count)
    with pytest.raises(InvalidFieldError, match=message):
        train_sft(run)


def test_a_preference_is_no_example(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path)
    run.train.write_text('{"format": "preference"}\n')
    with pytest.raises(InvalidFieldError, match=r"train\.jsonl\[1\]\.format: must be one of sft"):
        train_sft(run)


def test_accumulated_batches_weigh_tokens_alike(written_base, tmp_path):
    base = written_base().load()
    losses = {}
    for batch_size, accumulation in ((8, 1), (2, 4)):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        reports = []
        run = make_run(
            base,
            folder,
            hyperparameters={"batch_size": batch_size, "gradient_accumulation": accumulation},
            progress=reports.append,
        )
        train_sft(run)
        losses[batch_size] = [report.loss for report in reports]
    assert losses[8] == pytest.approx(losses[2], rel=1e-3)


def test_shifted_attention_trains_and_is_refused_beside_virtual_tokens(written_base, tmp_path):
    base = written_base().load()
    reports = []
    changes = {"shifted_attention_group": 8}
    train_sft(make_run(base, tmp_path, hyperparameters=changes, progress=reports.append))
    assert reports[-1].loss < reports[0].loss / 2
    (tmp_path / "other").mkdir()
    run = make_run(base, tmp_path / "other", hyperparameters=changes, method="PROMPT_TUNING")
    with pytest.raises(InvalidFieldError, match="shifted_attention_group: does not go with PROMPT"):
        train_sft(run)


@pytest.mark.parametrize("method", ["LORA", "PROMPT_TUNING"])
def test_checkpointed_activations_give_the_same(written_base, tmp_path, method):
    base = written_base().load()
    losses = {}
    for kept in (True, False):
        folder = tmp_path / str(kept)
        folder.mkdir()
        reports = []
        run = make_run(
            base, folder, method=method, progress=reports.append, gradient_checkpointing=not kept
        )
        train_sft(run)
        losses[kept] = [report.loss for report in reports]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_the_prompt_can_be_learned_too(written_base, tmp_path):
    base = written_base().load()
    counts = {}
    for on_prompt in (False, True):
        folder = tmp_path / str(on_prompt)
        folder.mkdir()
        reports = []
        changes = {"train_on_prompt": on_prompt, "max_steps": 1}
        train_sft(make_run(base, folder, hyperparameters=changes, progress=reports.append))
        counts[on_prompt] = reports[0].loss
    assert counts[False] != pytest.approx(counts[True])
