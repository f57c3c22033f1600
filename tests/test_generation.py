"""Batched answers are the same as one at a time, and a tuned model computes the same as an untuned one."""

import pytest
import torch

from dpo import chat
from dpo.generation import answer
from dpo.inference import GrowingCache, PackedLinear, tune
from dpo.models import load_model

QUESTIONS = ["Why?", "What is a list in Python, and what is it good for?", "Tell me about the sea.", "How do I begin?"]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A small model with random weights throughout: unlike the fixture's it says something else to every prompt."""
    from small_model import make_small_model

    folder = tmp_path_factory.mktemp("random") / "model"
    make_small_model(folder, tie_word_embeddings=True)
    return folder


def prompts_of(folder):
    tokenizer = chat.load_tokenizer(folder)
    return [chat.prompt_ids(tokenizer, chat.conversation(question)) for question in QUESTIONS], tokenizer


def one_at_a_time(model, prompts, tokenizer, limit):
    """What transformers' own `generate` answers, without padding and without a batch."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": limit, "pad_token_id": tokenizer.pad_token_id}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def test_a_batch_answers_as_generate_does_one_prompt_at_a_time(random_model):
    prompts, tokenizer = prompts_of(random_model)
    model = load_model(random_model)
    alone = one_at_a_time(model, prompts, tokenizer, 80)  # more than the cache grows by at once
    assert len({tuple(ids) for ids in alone}) == len(QUESTIONS)
    assert answer(tune(model), prompts, 80, tokenizer.eos_token_id) == alone


def test_rows_that_end_leave_and_the_others_go_on(random_model):
    """With another end token for each row, rows end one after another."""
    prompts, tokenizer = prompts_of(random_model)
    model = tune(load_model(random_model))
    whole = answer(model, prompts, 40, tokenizer.eos_token_id)
    for row, place in ((0, 3), (1, 17), (2, 30)):
        end = whole[row][place]
        cut = answer(model, prompts, 40, end)
        assert cut == [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]


def test_an_answer_ends_with_its_end_token_or_at_the_limit(small_model):
    prompts, tokenizer = prompts_of(small_model)
    model = load_model(small_model)
    assert {ids[-1] for ids in answer(model, prompts, 40, tokenizer.eos_token_id)} == {tokenizer.eos_token_id}
    assert {len(ids) for ids in answer(model, prompts, 5, tokenizer.eos_token_id)} == {5}


def test_tuning_changes_the_logits_by_rounding_only(random_model):
    prompts, _ = prompts_of(random_model)
    ids = torch.tensor([prompts[1]])
    model = load_model(random_model)
    with torch.inference_mode():
        plain = model(ids).logits
        tuned_model = tune(model)
        tuned = tuned_model(ids).logits
    assert any(isinstance(layer, PackedLinear) for layer in tuned_model.modules())
    assert torch.allclose(plain, tuned, atol=1e-4, rtol=1e-4)


def test_the_cache_keeps_the_rows_it_is_told_to(random_model):
    model = load_model(random_model)
    cache = GrowingCache(model.config.num_hidden_layers)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        cache.keep(torch.tensor([2]))
        after = model(torch.tensor([[14]]), past_key_values=cache).logits[0, -1]
        whole = model(torch.tensor([[11, 12, 13, 14]])).logits[0, -1]
    assert torch.allclose(after, whole, atol=1e-5)
