"""What is measured is what training sees: the chat template's own tokens, with prompt and answer cleanly apart."""

import json

import pytest

from dpo import chat
from dpo.layouts import Pair, Rejected
from dpo.tokenisation import Lengths, Tokenisation
from preference_data import build, make_pairs, write_rows
from workflow import PROJECT

LIMITS = {"max_length": 512, "max_prompt_length": 256}


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return chat.load_tokenizer(small_model)


def shipped():
    """All training and held-out pairs of the project."""
    for name in ("preferences.jsonl", "heldout.jsonl"):
        for line in (PROJECT / "data" / name).read_text().splitlines():
            row = json.loads(line)
            yield Pair(chat.conversation(row["prompt"]), row["chosen"], row["rejected"])


def pair(prompt="Why?", chosen="Because.", rejected="No idea."):
    return Pair(chat.conversation(prompt), chosen, rejected)


def direct(tokenizer, pair):
    """The lengths of a pair by the calls that trl.DPOTrainer makes, which need the prompt's ids to begin the others."""
    prompt = tokenizer.apply_chat_template(pair.prompt, add_generation_prompt=True, return_dict=False)
    whole = [
        tokenizer.apply_chat_template([*pair.prompt, {"role": "assistant", "content": answer}], return_dict=False)
        for answer in (pair.chosen, pair.rejected)
    ]
    assert all(ids[: len(prompt)] == prompt for ids in whole)
    return Lengths(len(prompt), *(len(ids) - len(prompt) for ids in whole))


def test_the_lengths_of_all_shipped_pairs_are_those_of_the_chat_template(tokenizer):
    pairs = list(shipped())
    assert len(pairs) == 60
    assert Tokenisation(tokenizer, LIMITS).measure(pairs) == [direct(tokenizer, pair) for pair in pairs]


def test_lengths_count_earlier_turns_a_system_turn_and_any_script(tokenizer):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    question = {"role": "user", "content": "Und nun? 🙂 几点了"}
    pairs = [
        Pair([*talk, question], " Zwölf Uhr.", "मुझे नहीं पता"),
        Pair([{"role": "system", "content": "Be brief."}, question], "12", "1  2\t3"),
        Pair([question], "def f():\n    return 1", "x" * 2000),
    ]
    assert Tokenisation(tokenizer, LIMITS).measure(pairs) == [direct(tokenizer, pair) for pair in pairs]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("answer", ["\n\nA line below.", "\n1. A list"])
def test_an_answer_that_merges_with_the_end_of_the_prompt_is_found(tokenizer, side, answer):
    """The template's header ends with a line feed, which with those of an answer would become another token."""
    (found,) = Tokenisation(tokenizer, LIMITS).measure([pair(**{side: answer})])
    assert isinstance(found, Rejected)
    assert found.reason == "boundary_merge"
    assert str(found).startswith(f"{side}: its first characters {answer[:8]!r} merge with the end of the prompt")


@pytest.mark.parametrize("answer", ["\nA line below.", " A space", "\tA tab", "...", "1"])
def test_an_answer_that_begins_with_a_token_of_its_own_is_sound(tokenizer, answer):
    (found,) = Tokenisation(tokenizer, LIMITS).measure([pair(chosen=answer)])
    assert found == direct(tokenizer, pair(chosen=answer))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_end_token_in_an_answer_is_found_among_the_templates_own(tokenizer, side):
    found, sound = Tokenisation(tokenizer, LIMITS).measure([pair(**{side: "It ends<|im_end|> here."}), pair()])
    assert found.reason == "special_tokens"
    assert str(found).startswith(side)
    assert isinstance(sound, Lengths)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>"])
def test_the_tokenizers_special_tokens_are_found_in_text(tokenizer, token):
    tokenisation = Tokenisation(tokenizer, LIMITS)
    assert tokenisation.find_special(f"before{token}after") == token
    assert tokenisation.find_special(f"{token[:-1]} and <b>") is None


def test_a_prompt_may_be_as_long_as_the_limit_and_no_longer(tokenizer):
    length = direct(tokenizer, pair()).prompt
    (sound,) = Tokenisation(tokenizer, {"max_length": 512, "max_prompt_length": length}).measure([pair()])
    assert sound == direct(tokenizer, pair())
    (found,) = Tokenisation(tokenizer, {"max_length": 512, "max_prompt_length": length - 1}).measure([pair()])
    assert (found.reason, found.measure) == ("prompt_too_long", length)
    assert f"over max_prompt_length = {length - 1}" in str(found)


def test_a_prompt_must_leave_room_for_a_token_of_the_answer(tokenizer):
    """trl.DPOTrainer drops pairs whose prompt alone has `max_length` tokens or more."""
    length = direct(tokenizer, pair()).prompt
    (sound,) = Tokenisation(tokenizer, {"max_length": length + 1, "max_prompt_length": 512}).measure([pair()])
    assert sound == direct(tokenizer, pair())
    (found,) = Tokenisation(tokenizer, {"max_length": length, "max_prompt_length": 512}).measure([pair()])
    assert (found.reason, found.measure) == ("no_room", length)


def test_a_conversation_that_the_template_refuses_is_that_pairs_fault_alone(small_model):
    tokenizer = chat.load_tokenizer(small_model)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    briefed = Pair([{"role": "system", "content": "Be brief."}, *pair().prompt], "Yes.", "No.")
    before, found, after = Tokenisation(tokenizer, LIMITS).measure([pair(), briefed, pair("How?")])
    assert isinstance(before, Lengths)
    assert isinstance(after, Lengths)
    assert found.reason == "malformed"
    assert "no system turn, please" in str(found)


def test_pairs_that_lose_their_end_in_training_are_counted(small_model, tokenizer, tmp_path):
    rows = [make_pairs(1, seed=seed, answer=words)[0] for seed, words in enumerate((4, 10, 16, 24, 40))]
    rows.append(rows[0] | {"prompt": "Which is longer?", "chosen": rows[4]["chosen"]})
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    lengths = [direct(tokenizer, pair(**row)) for row in rows]
    for limit in (90, lengths[3].prompt + lengths[3].chosen, 500):
        cut = [(row.prompt + row.chosen > limit, row.prompt + row.rejected > limit) for row in lengths]
        built = build(tmp_path, small_model, file, max_length=limit)
        assert built.audit["truncated"] == {
            "pairs": sum(map(any, cut)),
            "chosen_without_end": sum(chosen for chosen, _ in cut),
            "rejected_without_end": sum(rejected for _, rejected in cut),
        }
        assert len(built.pairs) == len(rows)  # what is cut is counted, not rejected
        # Training cuts: the set has the whole texts.
        assert built.texts[4] == tuple(rows[4].values())
