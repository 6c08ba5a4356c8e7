import pytest
from graftwork.status import InvalidFieldError
from graftwork_trainer.jobs.spec import SearchSpec
from graftwork_trainer.recipes.sft import train_sft
from graftwork_trainer.search import search

from tests.trainer.examples import make_run

ALL = ("learning_rate", "rank", "epochs", "batch_size")


def ignore(*_):
    pass


def test_the_best_trial_is_chosen(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path)
    told = []
    spec = SearchSpec(trials=3, parameters=ALL, steps_per_trial=3)
    found = search(run, spec, train_sft, lambda *args: told.append(args))
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    best = min(found.trials, key=lambda trial: trial.loss)
    assert found.chosen == best.parameters
    assert set(found.chosen) == set(ALL)
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert told[-1][2] == best.loss


def test_a_killed_search_goes_on_with_other_values(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path)
    spec = SearchSpec(trials=3, parameters=("learning_rate",), steps_per_trial=1)
    trained = []

    def dies_in_the_second(own):
        trained.append(own.hyperparameters.learning_rate)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_sft(own)

    with pytest.raises(KeyboardInterrupt):
        search(run, spec, dies_in_the_second, ignore)
    found = search(run, spec, dies_in_the_second, ignore)
    assert len(found.trials) == 3
    assert len(trained) == 4
    assert len(set(trained)) == 4


def test_a_method_without_rank_has_none_to_search(written_base, tmp_path):
    run = make_run(written_base().load(), tmp_path, method="IA3")
    spec = SearchSpec(trials=1, parameters=("rank",), steps_per_trial=1)
    with pytest.raises(InvalidFieldError, match=r"search\.parameters: IA3 has no rank"):
        search(run, spec, train_sft, ignore)
