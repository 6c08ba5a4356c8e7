import dataclasses
import json

import pytest
from graftwork.status import InvalidFieldError
from graftwork_trainer.recipes.run import TrainingStopped
from graftwork_trainer.recipes.search import SearchSpec, search
from graftwork_trainer.recipes.sft import train_sft

from tests.trainer.examples import make_run


def test_the_best_trial_decides(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path)
    seen = []
    result = search(run, SearchSpec(3, steps_per_trial=4), train_sft, seen.append)
    assert tuple(seen) == result.trials
    assert [trial.number for trial in result.trials] == [0, 1, 2]
    assert result.best.validation_loss == min(t.validation_loss for t in result.trials)
    assert all(set(t.values) == {"learning_rate", "rank", "epochs", "batch_size"} for t in seen)
    assert all(1 <= trial.steps <= 4 for trial in seen)
    chosen = result.run
    assert chosen.hyperparameters.learning_rate == result.best.values["learning_rate"]
    assert chosen.hyperparameters.max_steps is None
    assert chosen.method_config["r"] * 2 == chosen.method_config["lora_alpha"]
    assert chosen.folder == run.folder
    assert json.loads((run.folder / "search" / "search.json").read_text()) == json.loads(
        json.dumps(result.to_json())
    )


def test_a_killed_search_goes_on(written_base, tmp_path):
    spec = SearchSpec(3, parameters=("learning_rate",), steps_per_trial=1)
    run = make_run(written_base().load(), tmp_path)
    seen = []
    stopping = dataclasses.replace(run, should_stop=lambda: len(seen) == 2)
    with pytest.raises(TrainingStopped):
        search(stopping, spec, train_sft, seen.append)

    def dies(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(run, spec, dies, seen.append)
    result = search(run, spec, train_sft, seen.append)
    assert len(seen) == 3
    rates = [trial.values["learning_rate"] for trial in seen]
    assert len(set(rates)) == 3
    assert result.best in seen


def test_a_method_without_rank_is_searched_without(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, method="IA3")
    result = search(run, SearchSpec(1, steps_per_trial=1), train_sft)
    assert "rank" not in result.best.values
    with pytest.raises(InvalidFieldError, match=r"search\.parameters: IA3 of this job has no rank"):
        search(run, SearchSpec(1, ("rank",)), train_sft)


def test_no_trial_that_trains_is_an_error(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, method_config={"target_modules": ["none"]})
    with pytest.raises(InvalidFieldError, match=r"search: no trial could be trained: method_conf"):
        search(run, SearchSpec(2), train_sft)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trials": 0}, "search.trials: must be from 1 to 100"),
        ({"trials": 101}, "search.trials"),
        ({"trials": 1, "parameters": ("depth",)}, "search.parameters: 'depth' is none of"),
        ({"trials": 1, "steps_per_trial": 0}, "search.steps_per_trial"),
    ],
)
def test_impossible_searches_are_refused(fields, message):
    with pytest.raises(InvalidFieldError, match=message):
        SearchSpec(**fields)


def test_without_validation_there_is_nothing_to_go_by(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, validation=None)
    with pytest.raises(InvalidFieldError, match="needs validation examples"):
        search(run, SearchSpec(1), train_sft)
