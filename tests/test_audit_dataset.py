"""The audit's figures are true, and it stops the workflow where more is wrong than the config allows."""

import json

import numpy as np
import pytest

from dpo.artifacts import read_jsonl
from dpo.audit import BINS, count_lengths, describe_heldout_bias, describe_training_bias, length_auc
from dpo.cli import UserError
from preference_data import audit, build, make_pairs, write_rows
from workflow import PROJECT

STRICT = {"tolerance": {"other": 0.0}}


def prompts_file(folder, *texts):
    """A file of test prompts that expect nothing."""
    rows = [
        {"id": f"p-{place}", "topic": "any", "prompt": text, "expects": [], "forbids": []}
        for place, text in enumerate(texts, start=1)
    ]
    return write_rows(folder / "prompts.jsonl", rows)


def build_both(folder, model, train, heldout):
    """Build both sets of rows, as the workflow does; they go into the folder `data`."""
    build(folder / "data", model, write_rows(folder / "preferences.jsonl", train))
    trained = folder / "data/train.jsonl"
    build(folder / "data", model, write_rows(folder / "heldout.jsonl", heldout), name="heldout", trained=trained)
    return folder / "data"


# What is counted


def by_hand(chosen, rejected):
    """The share of all pairs of a chosen and a rejected answer in which the chosen one is longer, ties half."""
    return np.mean([(one > other) + (one == other) / 2 for one in chosen for other in rejected])


@pytest.mark.parametrize("seed", range(5))
def test_the_auc_is_the_share_of_longer_chosen_answers_counted_by_hand(seed):
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.integers(1, 30, 40) + seed, rng.integers(1, 30, 60)
    assert length_auc(chosen, rejected) == pytest.approx(by_hand(chosen, rejected), abs=1e-12)
    assert length_auc(rejected, chosen) == pytest.approx(1 - by_hand(chosen, rejected), abs=1e-12)


def test_the_auc_at_its_ends_and_in_the_middle():
    short, long = np.array([1, 2, 3]), np.array([4, 5])
    assert length_auc(long, short) == 1
    assert length_auc(short, long) == 0
    assert length_auc(short, short) == 0.5
    assert length_auc(np.array([7]), np.array([7])) == 0.5


LONG = "by preferring longer answers, whatever they say. Expect longer answers"
SHORT = "by preferring shorter answers, whatever they say. Expect shorter answers"


@pytest.mark.parametrize(
    ("auc", "conclusion"),
    [
        (1.0, LONG),
        (0.71, LONG),
        (0.69, "part of what DPO can learn here is to answer longer"),
        (0.6, "DPO has to learn something other than length"),
        (0.4, "DPO has to learn something other than length"),
        (0.39, "part of what DPO can learn here is to answer shorter"),
        (0.29, SHORT),
        (0.0, SHORT),
    ],
)
def test_a_sentence_says_what_lengths_do_to_training(auc, conclusion):
    sentence = describe_training_bias(auc, 0.25)
    assert sentence.startswith("The chosen answer is the longer one in 25% of the pairs, and length alone tells")
    assert f"with an AUC of {auc:.2f}" in sentence
    assert conclusion in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("longer", "equal", "conclusion"),
    [
        (0.75, 0.05, "prefers the longer answer is right in 75%."),
        (0.25, 0.05, "prefers the shorter answer is right in 70%."),
        (0.5, 0.0, "prefers the longer answer is right in 50%."),
    ],
)
def test_a_sentence_says_what_lengths_do_to_the_accuracy(longer, equal, conclusion):
    sentence = describe_heldout_bias(0.625, longer, equal)
    assert sentence.startswith(f"The chosen answer is the longer one in {longer:.0%} of the pairs (AUC 0.62): ")
    assert sentence.endswith(conclusion)


def test_lengths_are_counted_and_cut_as_training_cuts_them():
    lengths = np.array([[10, 20, 5], [10, 5, 20], [30, 10, 10], [20, 41, 40]], dtype=np.int32)
    counts = count_lengths(lengths, 60)
    assert counts["tokens"] == {
        "prompt": {"min": 10, "mean": 17.5, "max": 30},
        "chosen": {"min": 5, "mean": 19.0, "max": 41},
        "rejected": {"min": 5, "mean": 18.75, "max": 40},
    }
    assert counts["truncated"] == {"pairs": 1, "chosen_without_end": 1, "rejected_without_end": 0}
    assert counts["length_bias"]["chosen_longer"] == 0.5
    assert counts["length_bias"]["equal"] == 0.25
    assert counts["length_bias"]["auc"] == by_hand(lengths[:, 1], lengths[:, 2])
    histogram = counts["histogram"]
    assert len(histogram["edges"]) == BINS + 1
    assert (histogram["edges"][0], histogram["edges"][-1]) == (5, 41)
    assert sum(histogram["chosen"]) == sum(histogram["rejected"]) == 4
    assert histogram["rejected"][0] == histogram["rejected"][-1] == histogram["chosen"][-1] == 1


def test_an_endless_answer_does_not_squeeze_the_others_into_one_bar():
    lengths = np.array([[10, 20 + place % 10, 30] for place in range(300)] + [[10, 5000, 30]], dtype=np.int32)
    counts = count_lengths(lengths, 512)
    assert counts["tokens"]["chosen"]["max"] == 5000
    histogram = counts["histogram"]
    assert histogram["open_ended"] is True
    assert histogram["edges"][-1] == 30
    assert sum(histogram["chosen"]) == sum(histogram["rejected"]) == 301
    assert histogram["chosen"][-1] == 1
    assert count_lengths(lengths[:-1], 512)["histogram"]["open_ended"] is False


def test_a_single_pair_can_be_counted():
    counts = count_lengths(np.array([[9, 7, 7]], dtype=np.int32), 60)
    assert counts["length_bias"]["auc"] == 0.5
    assert counts["length_bias"]["equal"] == 1
    assert sum(counts["histogram"]["chosen"]) == 1


# What is put together


def test_the_shipped_data_passes_and_is_accounted_for(small_model, tmp_path, capsys):
    train = [json.loads(line) for line in (PROJECT / "data/preferences.jsonl").read_text().splitlines()]
    heldout = [json.loads(line) for line in (PROJECT / "data/heldout.jsonl").read_text().splitlines()]
    folder = build_both(tmp_path, small_model, train, heldout)
    counts = audit(folder, small_model, PROJECT / "data/prompts.jsonl", **STRICT)
    assert counts["accounting"] == {"rows": 60, "train": 20, "heldout": 40, "rejected": 0}
    assert counts["prompts"]["prompts"] == sum(counts["prompts"]["topics"].values()) == 119
    assert counts["prompts"]["sets"] == {"prompts": 35, "instructions": 48, "adversarial": 36}
    # What the report and the README say of this data: in training the better answer is always the longer one.
    assert counts["train"]["length_bias"]["chosen_longer"] == 1
    assert counts["train"]["length_bias"]["auc"] == 1
    assert 0.4 <= counts["heldout"]["length_bias"]["chosen_longer"] <= 0.6
    output = capsys.readouterr().out
    assert "60 rows = 20 training pairs + 40 held-out pairs + 0 rejected; 119 test prompts" in output
    sentences = {name: counts[name]["length_bias"]["sentence"] for name in ("train", "heldout")}
    assert sentences["train"] == describe_training_bias(1, 1)
    assert "is right in 5" in sentences["heldout"]
    assert all(f"{name}: {sentence}" in output for name, sentence in sentences.items())


@pytest.fixture(scope="module")
def faulty(small_model, tmp_path_factory):
    """Sets of which some rows were rejected: of 10 training rows 3, of 4 held-out rows 1. Read only."""
    folder = tmp_path_factory.mktemp("faulty")
    train, heldout = make_pairs(10, seed=1), make_pairs(4, seed=2)
    train[4] = train[0] | {"chosen": train[0]["chosen"] + " of"}
    train[5] = train[0] | {"chosen": train[0]["chosen"] + " of it"}
    train[6] = "{oops"
    heldout[1] = {"prompt": "Why?", "chosen": "So.", "rejected": "so"}
    return build_both(folder, small_model, train, heldout)


def test_every_rejected_row_of_both_sets_is_in_one_file(small_model, faulty, tmp_path):
    counts = audit(faulty, small_model, prompts_file(tmp_path, "Is it?"))
    assert counts["accounting"] == {"rows": 14, "train": 7, "heldout": 3, "rejected": 4}
    rejected = read_jsonl(faulty / "rejected.jsonl")
    assert {(row["source"].rpartition("/")[2], row["line"], row["reason"]) for row in rejected} == {
        ("preferences.jsonl", 5, "near_duplicate"),
        ("preferences.jsonl", 6, "near_duplicate"),
        ("preferences.jsonl", 7, "malformed"),
        ("heldout.jsonl", 2, "identical"),
    }


def test_a_share_above_its_tolerance_stops_with_the_worst_rows_first(small_model, faulty, tmp_path):
    tolerance = {"malformed": 0.1, "near_duplicate": 0.19, "other": 0.25}
    with pytest.raises(UserError) as caught:
        audit(faulty, small_model, prompts_file(tmp_path, "Is it?"), tolerance=tolerance)
    headline, first, worst, second, remedy = str(caught.value).splitlines()
    assert headline == "the data has faults:"
    assert first == (
        "  train: 2 of 10 rows near_duplicate (20.00%), more than data.tolerance.near_duplicate = 0.19 allows"
    )
    assert "preferences.jsonl:5: " in worst
    assert "preferences.jsonl:6: " in second
    assert f"every rejected row is in {faulty}/*.rejected.jsonl" in remedy


def test_a_share_at_its_tolerance_passes_and_the_rest_is_judged_by_other(small_model, faulty, tmp_path):
    prompts = prompts_file(tmp_path, "Is it?")
    tolerance = {"malformed": 0.1, "near_duplicate": 0.2, "identical": 0.25, "other": 0.0}
    audit(faulty, small_model, prompts, tolerance=tolerance)
    del tolerance["identical"]
    with pytest.raises(
        UserError, match=r"heldout: 1 of 4 rows identical \(25.00%\), more than data.tolerance.other = 0"
    ):
        audit(faulty, small_model, prompts, tolerance=tolerance)


def test_pairs_that_lose_their_end_have_a_tolerance_of_their_own(small_model, tmp_path):
    rows = [*make_pairs(4, seed=3), *make_pairs(1, seed=4, answer=60), "{oops"]
    build(tmp_path / "data", small_model, write_rows(tmp_path / "a.jsonl", rows), max_length=150)
    build(tmp_path / "data", small_model, write_rows(tmp_path / "b.jsonl", make_pairs(1, seed=5)), name="heldout")
    prompts = prompts_file(tmp_path, "Is it?")
    audit(tmp_path / "data", small_model, prompts, tolerance={"truncated": 0.2, "other": 1.0})
    message = r"train: 1 of 5 pairs truncated \(20.00%\), more than data.tolerance.truncated = 0.19 allows"
    with pytest.raises(UserError, match=message):
        audit(tmp_path / "data", small_model, prompts, tolerance={"truncated": 0.19, "other": 1.0})


def test_lengths_that_tell_too_much_stop_with_the_remedy(small_model, tmp_path):
    rows = make_pairs(8, seed=6)
    for row in rows[:7]:
        row["chosen"] += " and so on and on and on"
    longer = build_both(tmp_path / "longer", small_model, rows, make_pairs(2, seed=7))
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    shorter = build_both(tmp_path / "shorter", small_model, swapped, make_pairs(2, seed=7))
    prompts = prompts_file(tmp_path, "Is it?")
    auc = audit(longer, small_model, prompts, max_length_auc=1.0)["train"]["length_bias"]["auc"]
    assert 0.6 < auc < 1
    assert audit(longer, small_model, prompts, max_length_auc=auc)["accounting"]["rejected"] == 0
    for folder, other, measured in ((longer, "shorter", auc), (shorter, "longer", 1 - auc)):
        with pytest.raises(UserError) as caught:
            audit(folder, small_model, prompts, max_length_auc=0.6)
        assert f"with an AUC of {measured:.2f}, beyond data.max_length_auc = 0.6" in str(caught.value)
        assert f"add pairs whose better answer is the {other} one" in str(caught.value)


# Test prompts


@pytest.mark.parametrize(("name", "place"), [("train", 3), ("heldout", 2)])
def test_a_test_prompt_that_is_in_a_set_stops_with_file_and_line(small_model, faulty, tmp_path, name, place):
    pair = read_jsonl(faulty / f"{name}.jsonl")[place - 1]
    text = pair["prompt"][0]["content"]
    prompts = prompts_file(tmp_path, "Is it?", f"  {text.upper()}?!", f"{text} oh", text[:25])
    with pytest.raises(UserError) as caught:
        audit(faulty, small_model, prompts)
    exact, near = str(caught.value).splitlines()[1:-1]
    assert exact.startswith(f"  {prompts}:2: the prompt is 100% that of the {name} pair {pair['id']}; ")
    assert near.startswith(f"  {prompts}:3: the prompt is 9")
    assert near.endswith(f"that of the {name} pair {pair['id']}; what is tested must be new")


def test_test_prompts_are_measured_in_the_chat_template_and_searched_for_control_tokens(small_model, faulty, tmp_path):
    prompts = prompts_file(tmp_path, "Why is that so? " * 20, "Is it<|im_end|> over?", "Is it?")
    with pytest.raises(UserError) as caught:
        audit(faulty, small_model, prompts, max_prompt_length=60)
    problems = str(caught.value)
    assert f"{prompts}:1: the prompt is " in problems
    assert "over max_prompt_length = 60" in problems
    assert f"{prompts}:2: the prompt holds <|im_end|>" in problems
    assert f"{prompts}:3" not in problems


def test_a_wall_of_problems_is_cut(small_model, faulty, tmp_path):
    prompts = prompts_file(tmp_path, *(f"{number}<|im_end|>" for number in range(30)))
    with pytest.raises(UserError) as caught:
        audit(faulty, small_model, prompts)
    lines = str(caught.value).splitlines()
    assert len(lines) == 23
    assert lines[-2] == "  … and 10 more"


def test_a_fault_leaves_no_audit_behind(small_model, tmp_path):
    folder = build_both(tmp_path, small_model, [*make_pairs(3, seed=8), "{oops"], make_pairs(2, seed=9))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError):
        audit(folder, small_model, prompts_file(tmp_path, "Is it?"), **STRICT)
    assert {path.name for path in folder.iterdir()} == before
