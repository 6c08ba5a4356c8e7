from collections import Counter

import pytest
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_trainer.datasets.examples import ClassificationExample
from graftwork_trainer.datasets.extraction import examples
from graftwork_trainer.datasets.prompts import Conversation, Message, Text

from tests.trainer.datasets.feedback import (
    LENGTH,
    feedback,
    generation,
    named_answer,
    text_answer,
)

FOUR = generation("g4", "4", group_id="g", episode_id="e")
FIVE = generation("g5", "5", group_id="g", episode_id="e")
SIX = generation("g6", "6", group_id="g", episode_id="e")


def made(format_name, *judged, **options):
    return list(examples(judged, format_name, **options))


def pairs(found):
    return [(example.chosen, example.rejected) for example in found]


def test_a_correction_is_an_answer_and_a_pair_over_the_original():
    judged = (feedback("f", generation_id="g5", correction="4", author="ann"), [FIVE])
    (told,) = made("sft", judged)
    assert told.prompt == Conversation((Message("user", "2 + 2 = ?"),))
    assert (told.id, told.completion, told.task, told.author) == ("f", "4", "sums", "ann")
    assert (told.episode_id, told.group_id) == ("e", "g")
    assert (told.generation_ids, told.feedback_ids) == (("g5",), ("f",))
    assert pairs(made("preference", judged)) == pairs(made("reward", judged)) == [("4", "5")]
    assert made("unpaired", judged) == made("classification", judged) == []


def test_a_correction_equal_to_the_original_gives_no_pair():
    assert made("preference", (feedback("f", generation_id="g4", correction="4"), [FOUR])) == []


def test_a_demonstration_says_nothing_about_the_original():
    judged = (feedback("f", generation_id="g5", demonstration="four"), [FIVE])
    assert [example.completion for example in made("sft", judged)] == ["four"]
    assert made("preference", judged) == []


def test_an_inline_prompt_needs_no_generation():
    prompt = pb.InlinePrompt(text="2 + 2 =", task="sums", episode_id="e")
    (told,) = made("sft", (feedback("f", prompt=prompt, correction="4"), []))
    assert (told.prompt, told.task, told.episode_id) == (Text("2 + 2 ="), "sums", "e")
    assert (told.group_id, told.generation_ids) == ("", ())
    assert made("preference", (feedback("f", prompt=prompt, correction="4"), [])) == []


def test_a_label_is_a_class_and_an_answer():
    judged = (feedback("f", generation_id="g5", label="spam"), [FIVE])
    (labelled,) = made("classification", judged)
    assert isinstance(labelled, ClassificationExample)
    assert labelled.completion == "spam"
    assert [example.completion for example in made("sft", judged)] == ["spam"]


def test_a_preference_carries_its_margin_and_both_generations():
    value = pb.Preference(chosen=named_answer("g4"), rejected=named_answer("g5"), margin=0.5)
    judged = (feedback("f", group_id="g", preference=value), [FOUR, FIVE])
    (pair,) = made("preference", judged)
    assert (pair.chosen, pair.rejected, pair.margin) == ("4", "5", 0.5)
    assert pair.generation_ids == ("g4", "g5")
    assert [(e.id, e.completion, e.label) for e in made("unpaired", judged)] == [
        ("f", "4", True),
        ("f-1", "5", False),
    ]


def test_a_tie_takes_part_in_reward_models_only():
    value = pb.Preference(chosen=named_answer("g4"), rejected=text_answer("four"), tie=True)
    judged = (feedback("f", generation_id="g4", preference=value), [FOUR])
    assert made("preference", judged) == made("unpaired", judged) == []
    (tied,) = made("reward", judged)
    assert (tied.chosen, tied.rejected, tied.tie) == ("4", "four", True)


def test_a_ranking_gives_every_pair_of_unequal_rank():
    rank = pb.Ranking.Rank
    value = pb.Ranking(
        ranks=[
            rank(answers=[named_answer("g4"), text_answer("four")]),
            rank(answers=[named_answer("g5")]),
            rank(answers=[named_answer("g6")]),
        ]
    )
    judged = (feedback("f", group_id="g", ranking=value), [FOUR, FIVE, SIX])
    unequal = [("4", "5"), ("four", "5"), ("4", "6"), ("four", "6"), ("5", "6")]
    found = made("preference", judged)
    assert pairs(found) == unequal
    assert [example.id for example in found] == ["f", "f-1", "f-2", "f-3", "f-4"]
    assert pairs(made("reward", judged)) == [*unequal, ("4", "four")]
    assert [(e.completion, e.label) for e in made("unpaired", judged)] == [
        ("4", True),
        ("four", True),
        ("6", False),
    ]


def thumbs(name, target, vote, author=""):
    return feedback(name, generation_id=target, author=author, thumbs=vote)


def test_thumbs_on_answers_to_one_prompt_make_pairs():
    judged = [
        (thumbs("f1", "g4", pb.THUMBS_UP), [FOUR]),
        (thumbs("f2", "g5", pb.THUMBS_DOWN), [FIVE]),
        (thumbs("f3", "g6", pb.THUMBS_DOWN), [SIX]),
        (thumbs("f4", "other", pb.THUMBS_DOWN), [generation("other", "7", prompt="3 + 3 = ?")]),
    ]
    assert [(e.completion, e.label) for e in made("unpaired", *judged)] == [
        ("4", True),
        ("5", False),
        ("6", False),
        ("7", False),
    ]
    (pair,) = made("preference", *judged)
    assert (pair.chosen, pair.rejected, pair.feedback_ids) == ("4", "5", ("f1", "f2"))


def test_as_many_thumbs_up_as_down_say_nothing_in_pairs():
    dropped = Counter()
    judged = [
        (thumbs("f1", "g4", pb.THUMBS_UP, "ann"), [FOUR]),
        (thumbs("f2", "g4", pb.THUMBS_DOWN, "bob"), [FOUR]),
        (thumbs("f3", "g5", pb.THUMBS_DOWN, "bob"), [FIVE]),
    ]
    assert made("preference", *judged, dropped=dropped) == []
    assert dropped == {"contradictory": 1}


def test_rewards_are_unpaired_only_by_a_threshold():
    judged = [
        (feedback("f1", generation_id="g4", reward=0.5), [FOUR]),
        (feedback("f2", generation_id="g5", reward=0.0), [FIVE]),
    ]
    assert [e.reward for e in made("reward", *judged)] == [0.5, 0.0]
    assert made("unpaired", *judged) == []
    assert [e.label for e in made("unpaired", *judged, reward_threshold=0.5)] == [True, False]


def test_thumbs_on_an_episode_are_about_all_its_answers():
    judged = (feedback("f", episode_id="e", thumbs=pb.THUMBS_UP), [FOUR, FIVE])
    assert [(e.id, e.completion) for e in made("unpaired", judged)] == [("f", "4"), ("f-1", "5")]


def test_an_answer_that_was_cut_off_is_marked():
    cut = generation("cut", "4 be", finish_reason=LENGTH)
    assert made("unpaired", (thumbs("f", "cut", pb.THUMBS_UP), [cut]))[0].truncated
    assert made("preference", (feedback("f", generation_id="cut", correction="4"), [cut]))[
        0
    ].truncated
    # What was cut off does not matter to who says what it should have been.
    assert not made("sft", (feedback("f", generation_id="cut", correction="4"), [cut]))[0].truncated


def test_feedback_that_gives_nothing_is_counted_by_reason():
    dropped = Counter()
    gone = pb.Preference(chosen=named_answer("gone"), rejected=named_answer("g5"))
    other = generation("o", "6", prompt="3 + 3 = ?", episode_id="e")
    made("sft", (feedback("f1", generation_id="gone", correction="4"), []), dropped=dropped)
    made("sft", (feedback("f2", episode_id="e", label="4"), [FOUR, other]), dropped=dropped)
    made("preference", (feedback("f3", group_id="g", preference=gone), [FIVE]), dropped=dropped)
    made("preference", (thumbs("f4", "gone", pb.THUMBS_UP), []), dropped=dropped)
    assert dropped == {"no_prompt": 2, "several_prompts": 1, "no_answer": 1}


def test_remarks_give_no_examples_and_are_not_counted():
    dropped = Counter()
    assert (
        made("sft", (feedback("f", generation_id="g4", remark="!"), [FOUR]), dropped=dropped) == []
    )
    assert not dropped


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="sft, preference"):
        made("dpo")
