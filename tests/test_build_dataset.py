"""Sets of pairs: how sources are split, what is held back, and that the same comes of it in any number of processes."""

import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dpo.cli import UserError
from dpo.texts import normalize
from preference_data import LIMITS, build, make_pairs, sentence, write_rows
from workflow import PROJECT


@pytest.fixture(scope="module")
def shipped(small_model, tmp_path_factory):
    """The project's own training and held-out sets, as the workflow builds them."""
    folder = tmp_path_factory.mktemp("shipped")
    train = build(folder, small_model, PROJECT / "data/preferences.jsonl")
    heldout = build(folder, small_model, PROJECT / "data/heldout.jsonl", name="heldout", trained=folder / "train.jsonl")
    return train, heldout


def test_the_shipped_data_is_sound_and_has_the_promised_shape(shipped):
    train, heldout = shipped
    assert train.rejected == heldout.rejected == []
    topics = {"programming", "ai_ml", "mathematics", "study_skills", "career_development"}
    assert train.audit["topics"] == dict.fromkeys(topics, 4)
    assert heldout.audit["topics"] == dict.fromkeys(topics, 8)
    assert train.audit["truncated"]["pairs"] == heldout.audit["truncated"]["pairs"] == 0
    longer = sum(len(chosen) > len(rejected) for _, chosen, rejected in heldout.texts)
    assert longer == 20, "length alone must not decide the held-out pairs"


def test_a_set_is_written_in_trls_conversational_format_with_its_texts_untouched(shipped):
    rows = [json.loads(line) for line in (PROJECT / "data/preferences.jsonl").read_text().splitlines()]
    assert shipped[0].pairs == [
        {
            "id": row["id"],
            "topic": row["topic"],
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
    assert shipped[0].audit["examples"] == shipped[0].pairs[:3]


# The split


def mixed_rows():
    """400 lines: pairs, many of one prompt in several spellings, among them faulty and repeated ones."""
    rng = random.Random(0)
    rows = []
    for place, row in enumerate(make_pairs(400, seed=1)):
        if place % 5 == 1:
            row["prompt"] = f" {rows[-1]['prompt'].upper()}? "
        elif place % 20 == 7:
            row = rng.choice(("{oops", "[]", json.dumps(row | {"prompt": " "}), json.dumps(row | {"rejected": None})))
        elif place % 20 == 12:
            row["chosen"] = row["rejected"]
        elif place % 20 == 19:
            row = rows[-1] | {"chosen": f"{rows[-1]['chosen']} oh"}
        rows.append(row)
    return rows


def split(folder, model, file, *, share=0.3, seed=42):
    """Both sides of a split, built as the workflow does."""
    sides = [{"share": share, "seed": seed, "side": side} for side in ("train", "heldout")]
    train = build(folder, model, file, split=sides[0])
    return train, build(folder, model, file, name="heldout", trained=folder / "train.jsonl", split=sides[1])


def ids(built):
    return {pair["id"] for pair in built.pairs}


@pytest.fixture(scope="module")
def both(small_model, tmp_path_factory):
    """The rows, the file they are in, and the two sides of its split."""
    folder = tmp_path_factory.mktemp("split")
    rows = mixed_rows()
    file = write_rows(folder / "pairs.jsonl", rows)
    return rows, file, *split(folder, small_model, file)


def test_each_row_is_on_one_side_or_rejected_exactly_once(both):
    rows, file, train, heldout = both
    lines = [int(pair["id"].rpartition(":")[2]) for side in (train, heldout) for pair in side.pairs]
    lines += [row["line"] for side in (train, heldout) for row in side.rejected]
    assert sorted(lines) == list(range(1, len(rows) + 1))
    assert train.audit["rows"] + heldout.audit["rows"] == len(rows)
    assert train.audit["sources"] == heldout.audit["sources"]
    assert train.audit["sources"] == [{"source": str(file), "rows": len(rows), "layout": "explicit_prompt"}]
    # There is something of each kind on the side that it belongs to.
    assert heldout.audit["rejected_for"]["malformed"] == heldout.audit["rejected_for"]["leak"] == 0
    for reason in ("malformed", "identical", "near_duplicate"):
        assert train.audit["rejected_for"][reason] > 0
    for reason in ("identical", "near_duplicate"):
        assert heldout.audit["rejected_for"][reason] > 0


def test_no_prompt_is_on_both_sides_and_the_share_is_about_as_asked(both):
    _, _, train, heldout = both
    prompts = [{normalize(prompt) for prompt, *_ in side.texts} for side in (train, heldout)]
    assert prompts[0] & prompts[1] == set()
    assert sum(map(len, prompts)) < len(train.pairs) + len(heldout.pairs), "some prompts should come several times"
    assert 0.2 < len(prompts[1]) / (len(prompts[0]) + len(prompts[1])) < 0.4


def test_a_split_is_repeatable_and_another_seed_gives_another(small_model, both, tmp_path):
    _, file, train, heldout = both
    again = split(tmp_path, small_model, file)
    for before, after in zip((train, heldout), again, strict=True):
        assert (before.pairs, before.rejected, before.audit) == (after.pairs, after.rejected, after.audit)
    other = split(tmp_path, small_model, file, seed=43)
    assert not ids(other[1]) <= ids(heldout)
    assert not ids(heldout) <= ids(other[1])


def test_rows_that_are_added_move_no_row_to_the_other_side(small_model, both, tmp_path):
    rows, file, train, heldout = both
    before = file.read_text()
    try:
        write_rows(file, [*rows, *make_pairs(100, seed=2)])
        grown = split(tmp_path, small_model, file)
    finally:
        file.write_text(before)
    assert ids(train) < ids(grown[0])
    assert ids(heldout) < ids(grown[1])
    assert sum(len(side.pairs) for side in grown) == len(train.pairs) + len(heldout.pairs) + 100


# Leaks


def test_a_heldout_pair_with_a_training_prompt_is_rejected_as_leak(small_model, tmp_path):
    rows = make_pairs(6, seed=3)
    build(tmp_path, small_model, write_rows(tmp_path / "preferences.jsonl", rows))
    fresh = make_pairs(5, seed=4)
    fresh[1]["prompt"] = f"“{rows[2]['prompt'].upper()}?”"
    fresh[2]["prompt"] = rows[5]["prompt"] + " oh"
    fresh[3]["prompt"] = rows[5]["prompt"][:20] + fresh[3]["prompt"]
    fresh[4]["prompt"] = rows[2]["prompt"]  # each answer to a prompt leaks, not only the first
    file = write_rows(tmp_path / "heldout.jsonl", fresh)
    built = build(tmp_path / "out", small_model, file, name="heldout", trained=tmp_path / "train.jsonl")
    assert [prompt for prompt, *_ in built.texts] == [fresh[0]["prompt"], fresh[3]["prompt"]]
    assert built.reasons == [(2, "leak"), (3, "leak"), (5, "leak")]
    exact, near, again = built.rejected
    trained = tmp_path / "preferences.jsonl"
    assert exact["detail"] == f"its prompt is 100% that of the training pair {trained}:3; what is tested must be new"
    assert again["detail"] == exact["detail"]
    assert f"that of the training pair {trained}:6" in near["detail"]
    assert LIMITS["near_duplicate"] <= near["measure"] < 1


# Rows compared with each other


def test_repeated_rows_keep_the_first_and_say_where_it_is(small_model, tmp_path):
    first, second, third = make_pairs(3, seed=5)
    rows = [
        first,
        first | {"prompt": first["prompt"].title()},
        second,
        second | {"rejected": second["rejected"] + " oh"},
        second | {"rejected": third["rejected"]},
        third | {"id": "a"},
        third | {"id": "a", "prompt": "Why?"},
        {"prompt": "How?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Who?", "chosen": "Yes.", "rejected": "No."},
    ]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    built = build(tmp_path, small_model, file)
    (alike,) = (row["measure"] for row in built.rejected if row["reason"] == "near_duplicate")
    assert LIMITS["near_duplicate"] <= alike < 1
    assert {row["line"]: (row["reason"], row["detail"]) for row in built.rejected} == {
        2: ("duplicate", f"the same pair as {file}:1"),
        4: ("near_duplicate", f"{alike:.0%} the same as {file}:3"),
        7: ("malformed", f"the same id as {file}:6"),
    }
    assert len(built.pairs) == 6


def test_a_chain_of_contradictions_and_repeats_leaves_nothing_of_either_side(small_model, tmp_path):
    """A pair, its opposite, and both once more: whichever is meant, none of the four can be trusted."""
    row, other = make_pairs(2, seed=6)
    opposite = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    file = write_rows(tmp_path / "pairs.jsonl", [row, other, opposite, row, opposite])
    built = build(tmp_path, small_model, file)
    assert built.texts == [tuple(other.values())]
    assert built.reasons == [(1, "contradiction"), (3, "contradiction"), (4, "duplicate"), (5, "duplicate")]


# Text that must not reach the tokenizer


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_texts_that_training_would_misread_are_rejected_wherever_they_stand(small_model, tmp_path, field):
    texts = {"": "empty", " \n": "empty", "Stop<|im_end|>": "special_tokens", "Beep\x07": "control_characters"}
    rows = make_pairs(6, seed=7)
    for row, text in zip(rows[1:], texts, strict=False):
        row[field] = text
    rows[5][field] = "\n\nNext" if field != "prompt" else "Next\n"
    built = build(tmp_path, small_model, write_rows(tmp_path / "pairs.jsonl", rows))
    merged = [] if field == "prompt" else [(6, "boundary_merge")]
    assert built.reasons == [*enumerate(texts.values(), start=2), *merged]
    assert all(field in row["detail"] for row in built.rejected)


def test_a_set_without_a_usable_pair_stops_and_shows_why(small_model, tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Why?", "chosen": "x"}, "{oops", *["[1]"] * 5])
    with pytest.raises(UserError) as caught:
        build(tmp_path / "out", small_model, file)
    message = str(caught.value)
    assert f"no usable pair in {file}; rows were rejected for: malformed (7)" in message
    assert f"{file}:1: rejected is missing" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_share_that_holds_out_no_prompt_says_so(small_model, tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", make_pairs(5, seed=8))
    with pytest.raises(UserError, match=r"no usable pair in .*pairs.jsonl.*data.heldout"):
        build(tmp_path, small_model, file, name="heldout", split={"share": 1e-9, "seed": 42, "side": "heldout"})


# Several processes


def many_rows():
    """More than two batches, with faults and with repeats across batches."""
    rng = random.Random(9)
    rows = make_pairs(2300, seed=9, answer=6)
    for place in range(1, len(rows)):
        earlier = rows[rng.randrange(place)]
        match place % 40 and rng.randrange(40):
            case 1:
                rows[place] = dict(earlier) if isinstance(earlier, dict) else earlier
            case 2 if isinstance(earlier, dict):
                rows[place] = earlier | {"chosen": f"{earlier['chosen']} oh"}
            case 3 if isinstance(earlier, dict):
                rows[place] = earlier | {"chosen": earlier["rejected"], "rejected": earlier["chosen"]}
            case 4:
                rows[place] = rng.choice(("{oops", "\x00", json.dumps({"prompt": "Why?"})))
            case 5:
                rows[place] |= {"chosen": "\n\n" + sentence(rng, 3)}
            case 6:
                rows[place] |= {"prompt": sentence(rng, 300)}
    return rows


def test_two_processes_write_the_same_files_as_one(small_model, tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", many_rows())
    one = build(tmp_path / "one", small_model, file)
    assert min(one.audit["rejected_for"][reason] for reason in (
        "malformed", "boundary_merge", "prompt_too_long", "duplicate", "contradiction", "near_duplicate"
    )) > 10  # fmt: skip
    command = [sys.executable, str(PROJECT / "scripts/build_dataset.py"), "--model", str(small_model)]
    command += ["--settings", json.dumps(LIMITS | {"sources": [{"path": str(file)}]})]
    endings = {"dataset": "jsonl", "rejected": "rejected.jsonl", "prompts": "prompts.npy", "audit": "audit.json"}
    for option, ending in endings.items():
        command += [f"--{option}", str(tmp_path / f"two/train.{ending}")]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"2,300 rows: {len(one.pairs):,} pairs, {len(one.rejected):,} rejected" in result.stdout
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_audits_counts_are_those_of_the_pairs(small_model, shipped):
    """Lengths, histogram and length bias, counted again from the set as it was written."""
    from dpo import chat

    tokenizer = chat.load_tokenizer(small_model)
    for built in shipped:
        lengths = {
            side: [len(chat.completion_ids(tokenizer, pair["prompt"], pair[side])) for pair in built.pairs]
            for side in ("chosen", "rejected")
        }
        for side, counted in lengths.items():
            assert built.audit["tokens"][side] == {
                "min": min(counted), "mean": pytest.approx(np.mean(counted)), "max": max(counted)
            }  # fmt: skip
            assert sum(built.audit["histogram"][side]) == len(counted)
        compared = Counter(
            (chosen > rejected) - (chosen < rejected) for chosen, rejected in zip(*lengths.values(), strict=True)
        )
        assert built.audit["length_bias"]["chosen_longer"] == compared[1] / len(built.pairs)
        assert built.audit["length_bias"]["equal"] == compared[0] / len(built.pairs)
