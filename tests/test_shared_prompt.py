"""The shared layout computes what transformers, PEFT and TRL compute: same losses, same gradients, same adapter."""

import math

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from trl import DPOTrainer

from dpo import trainer as trainers
from dpo.attention import ROWS, PairAttention, Span
from dpo.completion_head import CompletionHead
from dpo.shared_prompt import Pair, SharedPromptModel, answer_logps, micro_batches, needed_operations, why_not
from dpo.workers import shared_out
from dpo.workspace import CHUNK, Workspace
from workflow import PROJECT

SIZES = {
    "vocab_size": 500,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied, with biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    ),
    "llama 3's positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**{name: value for name, value in SIZES.items() if name != "head_dim"} | {"hidden_size": 48})
    ),
}


def policy_of(model, layers=LAYERS, spread=0.1):
    """A model with an adapter whose every value is away from zero."""
    policy = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=layers, task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=spread)
        elif parameter.ndim == 1 and "bias" in name:
            parameter.data.normal_(std=0.1)
    return policy


def some_ids(length):
    return torch.randint(0, SIZES["vocab_size"], (length,)).tolist()


def some_pairs():
    """Pairs of all kinds: short and long, one-token answers, a prompt or an answer beyond one block of attention."""
    lengths = [(5, 3, 9), (1, 1, 1), (40, 1, 60), (ROWS + 3, 7, 2), (3, 2 * ROWS + 1, ROWS), (6, 20, 20)]
    return [Pair(*map(some_ids, three)) for three in lengths]


def logps_of_transformers(policy, pairs):
    """Log-probabilities of all chosen answers' tokens, then of all rejected ones', each answer computed alone."""
    found = []
    for side in ("chosen", "rejected"):
        for pair in pairs:
            answer = getattr(pair, side)
            logits = policy(input_ids=torch.tensor([pair.prompt + answer])).logits[0, len(pair.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found)


def gradients(policy, logps, weights):
    policy.zero_grad()
    (logps * weights).sum().backward()
    return {name: value.grad.clone() for name, value in policy.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_log_probabilities_and_gradients_are_those_of_transformers(make, checkpoint):
    set_seed(1)
    policy, pairs = policy_of(make()), some_pairs()
    theirs = logps_of_transformers(policy, pairs)
    weights = torch.randn(len(theirs))
    expected = gradients(policy, theirs, weights)
    ours, entropy, mean_logits, is_top1 = SharedPromptModel(policy, torch.float32, checkpoint).score(pairs)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    found = gradients(policy, ours, weights)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert entropy.shape == mean_logits.shape == is_top1.shape == ours.shape


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_cores_share_the_pairs_and_a_pass_in_between_changes_nothing(cores, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    set_seed(1)
    policy, pairs = policy_of(MODELS["llama"]()), some_pairs()
    model = SharedPromptModel(policy, torch.float32)
    theirs = logps_of_transformers(policy, pairs)
    weights = torch.randn(len(theirs))
    expected = gradients(policy, theirs, weights)
    ours = model.score(pairs)[0]
    model.score(pairs[::-1])
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    for name, gradient in gradients(policy, ours, weights).items():
        assert (gradient - expected[name]).norm() <= 1e-4 * gradient.norm(), name


def test_shares_are_even_and_hold_each_item_once():
    assert shared_out([9, 2, 3, 4], 2) == [[0], [1, 2, 3]]
    assert shared_out([5, 5, 5, 5], 3) == [[0, 3], [1], [2]]
    assert shared_out([1, 2], 16) == [[1], [0]]


@pytest.mark.parametrize("layers", [["q_proj"], ["v_proj", "up_proj"], ["down_proj", "o_proj"]], ids="+".join)
def test_an_adapter_may_be_on_some_layers_only(layers):
    set_seed(2)
    policy, pairs = policy_of(MODELS["llama"](), layers), some_pairs()
    theirs = logps_of_transformers(policy, pairs)
    weights = torch.randn(len(theirs))
    expected = gradients(policy, theirs, weights)
    found = gradients(policy, SharedPromptModel(policy, torch.float32).score(pairs)[0], weights)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_the_reference_is_the_base_model_and_batches_change_nothing():
    set_seed(3)
    policy, pairs = policy_of(MODELS["llama"]()), some_pairs()
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in pairs]
    found = list(answer_logps(SharedPromptModel(policy, torch.float32, adapter=False), rows))
    with policy.disable_adapter(), torch.no_grad():
        for pair, logps in zip(pairs, found, strict=True):
            answers = logps_of_transformers(policy, [pair]).split([len(pair.chosen), len(pair.rejected)])
            assert list(logps.values()) == pytest.approx([part.sum().item() for part in answers], abs=1e-3)
    # The very numbers, whatever else is computed beside them: or the first rewards would not be 0.
    alone = [next(answer_logps(SharedPromptModel(policy, torch.float32, adapter=False), [row])) for row in rows]
    assert [list(row.values()) for row in alone] == [pytest.approx(list(row.values()), abs=1e-4) for row in found]


def test_metrics_are_those_of_the_distribution():
    set_seed(4)
    layer = torch.nn.Linear(48, 500, bias=False)
    hidden, following = torch.randn(300, 48), torch.randint(0, 500, (300,))
    logits = hidden @ layer.weight.T
    following[:50] = logits[:50].argmax(-1)
    scores = CompletionHead(layer, torch.float32).score(hidden, following, with_gradient=True)
    logprobs = logits.log_softmax(-1)
    torch.testing.assert_close(scores.log_probs, logprobs.gather(-1, following[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy, -(logprobs.exp() * logprobs).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.mean_logits, logits.mean(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.is_top1, logits.argmax(-1) == following)
    assert scores.is_top1[:50].all()
    gradient = layer.weight[following] - logprobs.exp() @ layer.weight
    torch.testing.assert_close(scores.gradient, gradient, atol=1e-5, rtol=1e-4)


def test_sixteen_bit_logits_are_rounded_like_log_probabilities_not_like_logits():
    """Logits around 40 stand 1/4 apart in bfloat16; the head's log-probabilities are right to far less."""
    set_seed(5)
    layer = torch.nn.Linear(64, 2000, bias=False).to(torch.bfloat16)
    layer.weight.data.normal_()
    hidden = (5 * torch.randn(200, 64)).to(torch.bfloat16)
    logits = hidden.double() @ layer.weight.double().T
    assert logits.amax(-1).mean() > 40
    following = logits.argmax(-1)
    exact = logits.log_softmax(-1).amax(-1)
    found = CompletionHead(layer, torch.bfloat16).score(hidden, following, with_gradient=False).log_probs
    plain = (hidden @ layer.weight.T).float().log_softmax(-1).gather(-1, following[:, None])[:, 0]
    assert (found - exact).abs().max() < 0.01
    assert (plain - exact).abs().max() > 0.1


def test_a_log_probability_that_underflows_as_a_probability_is_still_right():
    layer = torch.nn.Linear(8, 100, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[3] = 50.0
    scores = CompletionHead(layer, torch.float32).score(torch.ones(1, 8), torch.tensor([7]), with_gradient=False)
    assert scores.log_probs.item() == pytest.approx(-400.0)


def test_sixteen_bit_products_show_what_an_adapter_changes():
    """What it adds is below the last digit of what it is added to: PEFT's bfloat16 layers show noise in its place."""
    set_seed(6)
    policy = policy_of(MODELS["llama"]().to(torch.bfloat16), spread=1e-3).float()
    pairs = [Pair(some_ids(20), some_ids(60), some_ids(60)) for _ in range(20)]

    def changes(tuned, base):
        """The change of each answer's log-probability."""
        return (tuned - base).float().view(40, 60).sum(1)

    def in_transformers():
        with torch.no_grad():
            tuned = logps_of_transformers(policy, pairs)
            with policy.disable_adapter():
                return changes(tuned, logps_of_transformers(policy, pairs))

    def agreement(found, expected):
        """Correlation, and the slope of a line through the origin."""
        return np.corrcoef(found, expected)[0, 1], (found @ expected / (expected @ expected)).item()

    exact = in_transformers()
    with torch.no_grad():
        tuned, base = (SharedPromptModel(policy, torch.bfloat16, adapter=on).score(pairs)[0] for on in (True, False))
    policy.to(torch.bfloat16)
    peft_correlation, _ = agreement(in_transformers(), exact)
    correlation, slope = agreement(changes(tuned, base), exact)
    assert correlation > 0.9
    assert slope == pytest.approx(1.0, abs=0.1)
    assert peft_correlation < 0.5


def test_a_change_below_the_last_digit_of_a_value_survives_attention():
    """A token that sees itself alone gets its own value: one on bfloat16's grid, plus a twentieth of a step."""
    set_seed(10)
    tokens, size = 1000, 8
    values = torch.randn(tokens, size).to(torch.bfloat16).float()
    added = values.abs() * 2**-8 / 20
    spans = [Span(token, 0, 1, 0) for token in range(tokens)]
    attention = PairAttention(
        spans, torch.ones(tokens, size // 2), torch.zeros(tokens, size // 2), 1, 1, torch.bfloat16
    )
    qkv = torch.cat([torch.randn(tokens, 2 * size), values + added], 1)
    found = attention.forward(qkv, Workspace(qkv.device))[0].float() / attention.off_grid - values
    assert torch.equal((values + added).to(torch.bfloat16).float(), values)
    assert (found.sum() / added.sum()).item() == pytest.approx(1.0, abs=0.3)


def settings_of(**changes):
    settings = yaml.safe_load((PROJECT / "config.yaml").read_text())["training"]
    small = {"max_length": 64, "max_steps": 4, "warmup_steps": 0, "logging_steps": 1, "learning_rate": 1e-3}
    return settings | small | {"bf16": False, "r": 4} | changes


class PreparedTrainer(DPOTrainer):
    """TRL's own trainer on rows of token ids, as ours takes them."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def rows_of(lengths):
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    return [dict(zip(names, map(some_ids, three), strict=True)) for three in lengths]


DATA = {
    "unequal lengths": [(5, 9, 3), (8, 2, 30), (3, 20, 7), (10, 5, 5), (4, 12, 18), (6, 3, 3), (9, 1, 14), (2, 8, 6)],
    "truncated": [(20, 44, 12), (30, 34, 34), (40, 24, 3), (10, 54, 54)] * 2,
    "one-token answers": [(5, 1, 1), (7, 1, 4), (3, 6, 1), (9, 1, 1)] * 2,
    "no padding": [(6, 10, 10)] * 8,
}


def train(kind, tokenizer, rows, folder, monkeypatch, **changes):
    """Train the small Llama; return the losses of its steps and its adapter as one vector."""
    settings = settings_of(**changes)
    set_seed(7)
    policy = policy_of(MODELS["llama"](), spread=0)
    reference = list(answer_logps(SharedPromptModel(policy, torch.float32, adapter=False), rows))
    rows = [row | logps for row, logps in zip(rows, reference, strict=True)]
    if kind == "shared_prompt":
        trainer = trainers.make_shared_prompt_trainer(policy, tokenizer, rows, settings, folder)
    else:
        monkeypatch.setattr(trainers, "DPOTrainer", PreparedTrainer)
        monkeypatch.setattr(PreparedTrainer, "_precompute_ref_logps", lambda self, dataset, *_: dataset)
        trainer = trainers.make_trl_trainer(policy, tokenizer, rows, settings, folder)
    trainer.train()
    adapter = torch.cat([value.detach().flatten() for value in policy.parameters() if value.requires_grad])
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], adapter


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return AutoTokenizer.from_pretrained(small_model)


LOSSES = {
    "sigmoid": {},
    "ipo": {"loss_type": "ipo"},
    "hinge": {"loss_type": "hinge", "beta": 1.0},
    "robust": {"loss_type": "robust", "label_smoothing": 0.1},
    "exo_pair": {"loss_type": "exo_pair", "label_smoothing": 0.1},
    "apo_zero": {"loss_type": "apo_zero"},
}
OTHER_LOSSES = {
    "nca_pair": {"loss_type": "nca_pair"},
    "bco_pair": {"loss_type": "bco_pair"},
    "sppo_hard": {"loss_type": "sppo_hard"},
    "apo_down": {"loss_type": "apo_down"},
    "discopop": {"loss_type": "discopop"},
    "sigmoid_norm": {"loss_type": "sigmoid_norm"},
    "sft": {"loss_type": "sft"},
    "a sum": {"loss_type": ["sigmoid", "sft"]},
    "a weighted sum": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.5]},
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("lengths", DATA.values(), ids=DATA)
def test_losses_and_adapter_are_those_of_trls_trainer(lengths, loss, tokenizer, tmp_path, monkeypatch):
    set_seed(8)
    rows = rows_of(lengths)
    theirs, their_adapter = train("trl", tokenizer, rows, tmp_path, monkeypatch, **loss)
    ours, our_adapter = train("shared_prompt", tokenizer, rows, tmp_path, monkeypatch, **loss)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert len(set(ours)) > 1
    assert functional.cosine_similarity(our_adapter, their_adapter, dim=0) > 0.9999


@pytest.mark.parametrize("loss", OTHER_LOSSES.values(), ids=OTHER_LOSSES)
def test_all_of_trls_losses_and_their_sums_are_trls_own(loss, tokenizer, tmp_path, monkeypatch):
    set_seed(8)
    rows = rows_of(DATA["unequal lengths"])
    # TRL takes the mean over tokens batch by batch: the same as ours where a step is one batch.
    step = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    theirs, their_adapter = train("trl", tokenizer, rows, tmp_path, monkeypatch, **loss, **step)
    ours, our_adapter = train("shared_prompt", tokenizer, rows, tmp_path, monkeypatch, **loss, **step)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert len(set(ours)) > 1
    assert functional.cosine_similarity(our_adapter, their_adapter, dim=0) > 0.9999


@pytest.mark.parametrize(
    "loss", [{}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}], ids=["dpo", "sft"]
)
@pytest.mark.parametrize("most_at_once", [1, 2, 8])
def test_how_a_step_is_divided_changes_nothing_but_rounding(most_at_once, loss, tokenizer, tmp_path, monkeypatch):
    set_seed(9)
    rows = rows_of([*DATA["unequal lengths"], (5, 5, 5), (6, 30, 2), (9, 3, 3)])
    parts = {"per_device_train_batch_size": most_at_once, "gradient_accumulation_steps": 8 // most_at_once}
    losses, adapter = train("shared_prompt", tokenizer, rows, tmp_path, monkeypatch, max_length=40, **parts, **loss)
    whole, expected = train(
        "shared_prompt", tokenizer, rows, tmp_path, monkeypatch,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, max_length=4000, **loss,
    )  # fmt: skip
    assert losses == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(adapter, expected, atol=1e-5, rtol=1e-3)


def test_a_workspace_is_used_again_and_grows():
    workspace = Workspace(torch.device("cpu"))
    first, second = workspace.copy(torch.arange(3.0)), workspace.copy(torch.arange(5), torch.bfloat16)
    large = workspace.empty((CHUNK,), torch.float32)
    large.zero_()
    assert first.tolist() == [0, 1, 2] and second.tolist() == [0, 1, 2, 3, 4]
    workspace.free()
    assert workspace.empty((3,), torch.float32).data_ptr() == first.data_ptr()
    mark = workspace.mark()
    third = workspace.empty((CHUNK,), torch.float32)
    assert third.data_ptr() == large.data_ptr()
    workspace.free(mark)
    assert workspace.empty((2,), torch.bfloat16).data_ptr() == second.data_ptr()


def test_micro_batches_hold_so_many_tokens_or_one_pair():
    rows = rows_of([(5, 5, 5), (1, 1, 1), (10, 20, 30), (2, 2, 2), (4, 4, 4)])
    batches = micro_batches(rows, 20)
    assert [row for batch in batches for row in batch] == rows
    assert [len(batch) for batch in batches] == [2, 1, 2]


def test_models_that_it_does_not_compute_are_told():
    assert why_not(LlamaConfig(**SIZES)) is None
    assert "gemma" in why_not(type("GemmaLike", (), {"model_type": "gemma"})())
    assert "gelu" in why_not(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert "window" in why_not(MistralConfig(**SIZES, sliding_window=8))


def test_needed_operations_are_those_of_the_products():
    """One pair of one token each: a product of each weight with three tokens, twice forward and twice backward."""
    config = LlamaConfig(**SIZES)
    weights = sum(values.numel() for name, values in LlamaForCausalLM(config).named_parameters() if "_proj" in name)
    seen = 1 + 2 + 2  # (query, key) pairs: the prompt sees itself, either answer the prompt and itself
    expected = 4 * weights * 3 + 4 * 500 * 48 * 2 + 12 * 2 * 6 * 8 * seen
    assert math.isclose(needed_operations(config, [Pair([1], [2], [3])]), expected)
