"""Files as they are published become exactly the pairs they say, and every row of them is accounted for."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from dpo.cli import UserError
from preference_data import build, write_rows


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


RAIN, SNOW = "Why does it rain in the tropics?", "What is the coldest place on Earth?"
WET, DRY = "Warm air carries water up, where it cools.", "Nobody can tell you that."
COLD, WARM = "A ridge in East Antarctica, at -93 °C.", "The Sahara, as far as I remember."
PAIRS = [(RAIN, WET, DRY), (SNOW, COLD, WARM)]
TALK = [user("Good morning!"), assistant("Good morning to you.")]
TALKED = (("user", "Good morning!"), ("assistant", "Good morning to you."))

# TRL's formats of preference data, each with PAIRS in it.
TRL = {
    "explicit, standard": [
        {"prompt": RAIN, "chosen": WET, "rejected": DRY},
        {"prompt": SNOW, "chosen": COLD, "rejected": WARM},
    ],
    "explicit, conversational": [
        {"prompt": [user(RAIN)], "chosen": [assistant(WET)], "rejected": [assistant(DRY)]},
        {"prompt": [user(SNOW)], "chosen": [assistant(COLD)], "rejected": [assistant(WARM)]},
    ],
    "explicit, answers that repeat the prompt": [
        {"prompt": [user(RAIN)], "chosen": [user(RAIN), assistant(WET)], "rejected": [user(RAIN), assistant(DRY)]},
        {"prompt": [user(SNOW)], "chosen": [user(SNOW), assistant(COLD)], "rejected": [assistant(WARM)]},
    ],
    "explicit, texts as prompt and conversations as answers": [
        {"prompt": RAIN, "chosen": [user(RAIN), assistant(WET)], "rejected": [user(RAIN), assistant(DRY)]},
        {"prompt": SNOW, "chosen": [user(SNOW), assistant(COLD)], "rejected": [user(SNOW), assistant(WARM)]},
    ],
    "implicit, standard": [
        {"chosen": f"{RAIN} {WET}", "rejected": f"{RAIN} {DRY}"},
        {"chosen": f"{SNOW}\n{COLD}", "rejected": f"{SNOW}\n{WARM}"},
    ],
    "implicit, conversational": [
        {"chosen": [user(RAIN), assistant(WET)], "rejected": [user(RAIN), assistant(DRY)]},
        {"chosen": [user(SNOW), assistant(COLD)], "rejected": [user(SNOW), assistant(WARM)]},
    ],
}


@pytest.mark.parametrize("rows", TRL.values(), ids=TRL)
def test_each_of_trls_formats_gives_the_same_pairs(small_model, tmp_path, rows):
    built = build(tmp_path, small_model, write_rows(tmp_path / "pairs.jsonl", rows))
    assert built.texts == PAIRS
    assert built.rejected == []


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_earlier_turns_and_a_system_turn_are_part_of_the_prompt(small_model, tmp_path, implicit):
    before = [
        [*TALK, user(RAIN)],
        [system("Answer in one sentence."), user(SNOW)],
        [user(RAIN), system("Answer in one sentence."), user(SNOW)],
        [*TALK],
    ]
    rows = [
        {"chosen": [*turns, assistant(WET)], "rejected": [*turns, assistant(DRY)]}
        if implicit
        else {"prompt": turns, "chosen": [assistant(WET)], "rejected": [assistant(DRY)]}
        for turns in before
    ]
    built = build(tmp_path, small_model, write_rows(tmp_path / "pairs.jsonl", rows))
    assert built.texts == [
        ((*TALKED, ("user", RAIN)), WET, DRY),
        ((("system", "Answer in one sentence."), ("user", SNOW)), WET, DRY),
    ]
    assert [(row["line"], row["detail"]) for row in built.rejected] == [
        (3, "a system turn stands after the first turn"),
        (4, "the prompt does not end with a user's turn"),
    ]


def test_what_two_texts_share_ends_at_a_word(small_model, tmp_path):
    """In TRL's standard implicit format the texts "… warm" and "… wary" share "… wa", which is no prompt."""
    rows = [
        {"chosen": "The cat's nose is warm.", "rejected": "The cat's nose is wary."},
        {"chosen": "Sun.", "rejected": "Moon."},
    ]
    built = build(tmp_path, small_model, write_rows(tmp_path / "pairs.jsonl", rows))
    assert built.texts == [("The cat's nose is", "warm.", "wary.")]
    assert built.reasons == [(2, "malformed")]


def webgpt(question, answers, scores):
    """A row with the columns of openai/webgpt_comparisons."""
    row = {"question": {"dataset": "eli5", "id": "8zmkxo", "full_text": question}}
    for place in (0, 1):
        row[f"quotes_{place}"] = {"title": ["Rain (example.org)"], "extract": ["Rain is water."]}
        row[f"answer_{place}"] = answers[place]
        row[f"tokens_{place}"] = {"prefix": [198, 24361, 25], "completion": [5195, 0]}
        row[f"score_{place}"] = scores[place]
    return row


WEBGPT = [
    webgpt(RAIN, [WET, DRY], [0.5, -0.5]),
    webgpt(RAIN, ["The sea [1].", "The sun [2]."], [0.0, 0.0]),
    webgpt(SNOW, [WARM, COLD], [-0.16666666666666666, 0.16666666666666666]),
    webgpt(SNOW, [WARM, "  "], [-1.0, 1.0]),
    webgpt(SNOW, [WARM, None], [-1.0, 1.0]),
    webgpt(SNOW, [WARM, "Some mountain in Antarctica."], [-0.75, None]),
]


def test_webgpt_comparisons_prefer_the_higher_score_and_leave_ties_out(small_model, tmp_path):
    built = build(tmp_path, small_model, file := write_rows(tmp_path / "comparisons.jsonl", WEBGPT))
    assert built.texts == PAIRS
    assert built.reasons == [(2, "low_confidence"), (4, "empty"), (5, "malformed"), (6, "malformed")]
    assert built.audit["sources"] == [{"source": str(file), "rows": 6, "layout": "webgpt_comparisons"}]
    assert [pair["id"] for pair in built.pairs] == [f"{file}:1", f"{file}:3"]


def test_the_least_difference_of_scores_is_the_configs(small_model, tmp_path):
    file = write_rows(tmp_path / "comparisons.jsonl", WEBGPT)
    built = build(tmp_path, small_model, file, min_score_difference=0.4)
    assert built.texts == PAIRS[:1]
    assert (3, "low_confidence") in built.reasons
    assert "the scores differ by 0.333333, not more than min_score_difference = 0.4" in built.rejected[1]["detail"]


def shp(post, answers, label, scores):
    """A row with the columns of stanfordnlp/SHP."""
    return {
        "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": post,
        "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "created_at_utc_A": 1636822112,
        "created_at_utc_B": 1636822110, "score_A": scores[0], "score_B": scores[1], "human_ref_A": answers[0],
        "human_ref_B": answers[1], "labels": label, "seconds_difference": 2.0,
        "score_ratio": max(scores) / min(scores),
    }  # fmt: skip


SHP = [
    shp(RAIN, [WET, DRY], 1, [340, 166]),
    shp(RAIN, ["Ask the clouds.", "Because of the heat."], 0, [30, 45]),
    shp(SNOW, [WARM, COLD], 0, [2, 4]),
    shp(SNOW, [WARM, COLD], 1, [4, 2]),
    shp(SNOW, ["[removed]", "Oymyakon in Siberia, of all towns."], 2, [4, 2]),
]


def test_shp_prefers_by_label_and_leaves_close_votes_out(small_model, tmp_path):
    built = build(tmp_path, small_model, write_rows(tmp_path / "train.json", [*SHP[:3], SHP[4]]))
    assert built.texts == PAIRS
    assert built.reasons == [(2, "low_confidence"), (4, "malformed")]
    assert "the votes differ by a factor of 1.5, below min_score_ratio = 2" in built.rejected[0]["detail"]
    assert built.audit["sources"][0]["layout"] == "shp"
    assert len(build(tmp_path, small_model, tmp_path / "train.json", min_score_ratio=1.5).pairs) == 3


def test_opposite_preferences_are_both_rejected(small_model, tmp_path):
    built = build(tmp_path, small_model, write_rows(tmp_path / "train.json", SHP[:4]))
    assert built.texts == PAIRS[:1]
    assert built.reasons == [(2, "low_confidence"), (3, "contradiction"), (4, "contradiction")]
    details = {row["line"]: row["detail"] for row in built.rejected}
    assert details[3] == f"the opposite preference is at {tmp_path}/train.json:4"
    assert details[4] == f"the opposite preference is at {tmp_path}/train.json:3"


def ultrafeedback(prompt, answers, scores, asked=None):
    """A row with the columns of HuggingFaceH4/ultrafeedback_binarized."""
    chosen, rejected = ([user(asked or prompt), assistant(answer)] for answer in answers)
    return {
        "prompt": prompt, "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
        "chosen": chosen, "rejected": rejected, "messages": chosen,
        "score_chosen": scores[0], "score_rejected": scores[1],
    }  # fmt: skip


ULTRAFEEDBACK = [
    ultrafeedback(RAIN, [WET, DRY], [8.5, 6.0]),
    ultrafeedback(RAIN, ["Warm sea, cold sky.", "Cold sea, warm sky."], [7.5, 7.5]),
    ultrafeedback(SNOW, [COLD, WARM], [9.0, 8.5]),
    ultrafeedback(SNOW, ["The South Pole station.", ""], [7.5, 1.0]),
    ultrafeedback(SNOW, ["On a mountain somewhere.", "In a freezer."], [7.5, 1.0], asked="And the warmest?"),
]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_ultrafeedback_takes_the_last_turns_and_leaves_ties_out(small_model, tmp_path):
    built = build(tmp_path, small_model, write_parquet(tmp_path / "train_prefs.parquet", ULTRAFEEDBACK))
    assert built.texts == PAIRS
    assert built.reasons == [(2, "low_confidence"), (4, "empty"), (5, "malformed")]
    assert built.audit["sources"][0]["layout"] == "ultrafeedback_binarized"


def test_the_readme_of_a_downloaded_dataset_says_which_files_a_split_has(small_model, tmp_path):
    folder = tmp_path / "downloaded"
    for split, rows in (("train_prefs", ULTRAFEEDBACK), ("test_prefs", ULTRAFEEDBACK[2:3])):
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    splits = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train_prefs", "test_prefs"))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n# Feedback\n"
    )
    source = {"repo": "someone/feedback", "revision": "0123456789abcdef", "folder": str(folder), "split": "test_prefs"}
    built = build(tmp_path, small_model, source)
    assert built.texts == PAIRS[1:]
    assert built.audit["sources"][0]["source"] == "someone/feedback@0123456789ab/test_prefs"
    with pytest.raises(UserError, match=r"someone/feedback@0123456789ab/validation cannot be read: .*test_prefs"):
        build(tmp_path, small_model, source | {"split": "validation"})


def hh(*turns):
    """A transcript as in Anthropic/hh-rlhf."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


HH_RLHF = [
    {"chosen": hh(user(RAIN), assistant(WET)), "rejected": hh(user(RAIN), assistant(DRY))},
    {"chosen": hh(*TALK, user(SNOW), assistant(COLD)), "rejected": hh(*TALK, user(SNOW), assistant(WARM))},
    {"chosen": hh(user(RAIN), assistant(WET)) + " ", "rejected": hh(user(RAIN), assistant(DRY))},
    {"chosen": hh(user(SNOW), assistant("")), "rejected": hh(user(SNOW), assistant(WARM))},
    {"chosen": hh(user(SNOW), assistant(COLD)), "rejected": hh(user(RAIN), assistant(WARM))},
    {"chosen": hh(user(SNOW), assistant(COLD)), "rejected": hh(user(SNOW), assistant(WARM), user("Sure?"))},
    {"chosen": hh(user(SNOW), assistant("A: B\n\nC: D")), "rejected": hh(user(SNOW), assistant("Some human: none."))},
]


def write_compressed(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_hh_rlhf_transcripts_part_at_their_last_answer(small_model, tmp_path):
    built = build(tmp_path, small_model, write_compressed(tmp_path / "train.jsonl.gz", HH_RLHF))
    assert built.texts == [
        PAIRS[0],
        ((*TALKED, ("user", SNOW)), COLD, WARM),
        (SNOW, "A: B\n\nC: D", "Some human: none."),
    ]
    assert built.reasons == [(3, "duplicate"), (4, "empty"), (5, "malformed"), (6, "malformed")]
    assert built.audit["sources"][0]["layout"] == "hh_rlhf"


def test_columns_of_other_names_are_mapped_by_the_config(small_model, tmp_path):
    names = {"prompt": "question", "chosen": "better", "rejected": "worse", "id": "number", "topic": "field"}
    rows = [
        {"question": prompt, "better": better, "worse": worse, "number": number, "field": "weather", "prompt": "unused"}
        for number, (prompt, better, worse) in enumerate(PAIRS, start=7)
    ]
    rows.append({"question": RAIN, "better": "Clouds.", "number": 9, "field": "weather"})
    built = build(tmp_path, small_model, {"path": str(write_rows(tmp_path / "a.jsonl", rows)), "columns": names})
    assert built.texts == PAIRS
    assert [(pair["id"], pair["topic"]) for pair in built.pairs] == [("7", "weather"), ("8", "weather")]
    assert built.audit["topics"] == {"weather": 2}
    assert [(row["line"], row["detail"]) for row in built.rejected] == [(3, "worse is missing")]


def test_a_layout_that_the_config_names_is_not_guessed(small_model, tmp_path):
    """Rows with scores that have the columns of ultrafeedback_binarized, but texts in them."""
    rows = [
        {"prompt": prompt, "chosen": better, "rejected": worse, "score_chosen": 1, "score_rejected": 0}
        for prompt, better, worse in PAIRS
    ]
    file = write_rows(tmp_path / "a.jsonl", rows)
    built = build(tmp_path, small_model, {"path": str(file), "layout": "explicit_prompt"})
    assert built.texts == PAIRS


def test_several_sources_are_read_one_after_another(small_model, tmp_path):
    first = write_rows(tmp_path / "first.jsonl", [TRL["explicit, standard"][0], "{oops"])
    second = write_compressed(tmp_path / "second.jsonl.gz", HH_RLHF[:2])
    third = tmp_path / "third.csv"
    third.write_text(f'prompt,chosen,rejected\n{SNOW},"{WARM}",007\n')
    built = build(tmp_path, small_model, first, second, third)
    assert built.texts == [PAIRS[0], ((*TALKED, ("user", SNOW)), COLD, WARM), (SNOW, WARM, "007")]
    assert [(row["source"], row["line"], row["reason"]) for row in built.rejected] == [
        (str(first), 2, "malformed"),
        (str(second), 1, "duplicate"),
    ]
    assert built.rejected[1]["detail"] == f"the same pair as {first}:1"
    assert [(source["rows"], source["layout"]) for source in built.audit["sources"]] == [
        (2, "explicit_prompt"),
        (2, "hh_rlhf"),
        (1, "explicit_prompt"),
    ]


def test_columns_that_fit_no_layout_are_named_with_the_remedy(small_model, tmp_path):
    rows = [{"instruction": RAIN, "good": WET, "bad": DRY}, {"instruction": SNOW, "good": COLD, "bad": WARM}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as caught:
        build(tmp_path, small_model, file)
    message = str(caught.value)
    assert f"{file}: its columns (instruction, good, bad) fit no known layout" in message
    assert "columns: {prompt: question, chosen: better, rejected: worse}" in message
    assert list(tmp_path.iterdir()) == [file]
