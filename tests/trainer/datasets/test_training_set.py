from collections import Counter

import pytest
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.datasets.training_set import augmented, mixture_counts, training_set
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.datasets.feedback import example


def settings(**fields):
    return DatasetSettings(selection=pb.ExampleSelection(format="classification"), **fields)


def labelled(number, completion="ham", task="spam"):
    return example(number, format="classification", completion=completion, task=task)


def classes(examples):
    return Counter((e.task, e.completion) for e in examples)


IMBALANCED = [labelled(n) for n in range(40)] + [labelled(n, "spam") for n in range(40, 46)]


def test_all_are_trained_on_by_default_in_an_order_of_their_own():
    chosen = training_set(IMBALANCED, settings())
    assert sorted(chosen, key=lambda e: e.id) == IMBALANCED
    assert chosen != IMBALANCED
    assert chosen == training_set(IMBALANCED[::-1], settings())


def test_few_shots_of_each_class():
    chosen = training_set(IMBALANCED, settings(max_per_class=4))
    assert classes(chosen) == {("spam", "ham"): 4, ("spam", "spam"): 4}


def test_rare_classes_are_repeated_up_to_their_share():
    chosen = training_set(IMBALANCED, settings(balance=0.5))
    assert classes(chosen) == {("spam", "ham"): 40, ("spam", "spam"): 20}
    assert len({e.id for e in chosen}) == 60
    repeats = Counter(e.prompt for e in chosen if e.completion == "spam")
    assert set(repeats.values()) <= {3, 4}


def test_tasks_are_mixed_by_weight():
    tasks = [labelled(n, task="a") for n in range(90)] + [labelled(n, task="b") for n in range(10)]
    unique = [e for n, e in enumerate(tasks) if n < 90] + [labelled(n, task="b") for n in (91, 92)]
    chosen = training_set(unique, settings(mixture={"a": 1, "b": 3}))
    assert Counter(e.task for e in chosen) == {"a": 23, "b": 69}


@pytest.mark.parametrize("mixture", [{"a": 1}, {"spam": 1, "eggs": 1}])
def test_a_mixture_names_the_tasks_that_there_are(mixture):
    with pytest.raises(InvalidFieldError, match="spam") as caught:
        training_set(IMBALANCED, settings(mixture=mixture))
    assert caught.value.field == "dataset.mixture"


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.integers(1, 500), st.floats(0.01, 100)),
        min_size=1,
    )
)
def test_mixture_proportions_are_those_of_the_weights(tasks):
    sizes = {task: size for task, (size, _) in tasks.items()}
    weights = {task: weight for task, (_, weight) in tasks.items()}
    counts = mixture_counts(sizes, weights)
    total = sum(sizes.values())
    for task, count in counts.items():
        share = weights[task] / sum(weights.values()) * total
        assert abs(count - share) < 1 + 1e-9
    raised = sum(count == 1 for count in counts.values())
    assert total <= sum(counts.values()) <= total + raised


def test_noisy_copies_keep_the_answer_and_most_of_the_words():
    chosen = training_set(IMBALANCED, settings(augmentation=2))
    assert len(chosen) == 3 * len(IMBALANCED)
    originals = {e.id: e for e in IMBALANCED}
    for copy in chosen:
        original = originals[copy.id.split("~")[0]]
        assert copy.completion == original.completion
        if copy is not original:
            words, kept = (set(e.prompt.messages[0].content.split()) for e in (original, copy))
            assert kept <= words
            assert len(kept) >= len(words) // 2
            assert copy.prompt != original.prompt
    assert chosen == training_set(IMBALANCED, settings(augmentation=2))


def test_only_the_last_question_is_changed():
    turns = [("system", "a b c d e"), ("user", "f g h i j"), ("assistant", "k l m n o")]
    prompt = {"messages": [{"role": role, "content": content} for role, content in turns]}
    copy = augmented(example(1, prompt=prompt), 1)
    contents = [message.content for message in copy.prompt.messages]
    assert (contents[0], contents[2]) == ("a b c d e", "k l m n o")
    assert contents[1] != "f g h i j"


@pytest.mark.parametrize(
    "prompt", [{"token_ids": [1, 2, 3, 4, 5]}, {"text": "too few words"}, {"messages": []}]
)
def test_what_cannot_be_changed_has_no_copies(prompt):
    assert augmented(example(1, prompt=prompt), 1) is None
