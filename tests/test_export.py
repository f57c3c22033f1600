"""From adapter to the file that ships: what is merged, converted, quantised and refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from dpo import chat, gguf_chat, preferences
from dpo.artifacts import read_jsonl, write_json, write_jsonl
from dpo.cli import UserError
from dpo.modelfile import turn_parts, write_modelfile
from dpo.models import completion_logps, load_model
from small_model import make_small_model
from workflow import PROJECT


def run(script, *arguments):
    """Run a program of the workflow; return the finished process."""
    command = [sys.executable, str(PROJECT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def make_adapter(model_folder, folder, scale=0.1):
    """Write a LoRA adapter of random weights for a model."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    chat.load_tokenizer(model_folder).save_pretrained(folder)


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory):
    """A folder with adapter, merged model and both GGUF files of the small model. Read only."""
    folder = tmp_path_factory.mktemp("exported")
    make_adapter(small_model, folder / "adapter")
    steps = [
        ("merge_adapter.py", "--model", small_model, "--adapter", folder / "adapter", "--merged", folder / "merged"),
        ("convert_to_gguf.py", "--model", folder / "merged", "--gguf", folder / "model-f16.gguf"),
        ("quantize_gguf.py", "--gguf", folder / "model-f16.gguf", "--quantized", folder / "model-q4_k_m.gguf"),
    ]
    for step in steps:
        result = run(*step)
        assert result.returncode == 0, result.stderr
    return folder


def smoke_test(folder, prompts=PROJECT / "data/prompts.jsonl"):
    """Run the smoke test on a folder made like `exported`."""
    return run(
        "smoke_test_gguf.py",
        *("--gguf", folder / "model-q4_k_m.gguf", "--f16", folder / "model-f16.gguf", "--merged", folder / "merged"),
        *("--prompts", prompts, "--settings", json.dumps({"max_new_tokens": 24})),
        *("--modelfile", folder / "Modelfile", "--report", folder / "smoke_test.json"),
    )


def logits_of(model):
    return model(torch.arange(40, 80)[None]).logits


def test_the_merged_model_is_base_plus_adapter_to_float16(small_model, exported):
    merged = logits_of(load_model(exported / "merged"))
    tuned = logits_of(load_model(small_model, exported / "adapter"))
    base = logits_of(load_model(small_model))
    assert (tuned - base).abs().max() > 0.05, "the adapter must do something for this test to mean anything"
    assert (merged - tuned).abs().max() < 0.02 * (tuned - base).abs().max()
    with safe_open(exported / "merged/model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118


def test_tied_embeddings_stay_tied(tmp_path):
    make_small_model(tmp_path / "model", tie_word_embeddings=True)
    make_adapter(tmp_path / "model", tmp_path / "adapter")
    result = run(
        "merge_adapter.py",
        *("--model", tmp_path / "model", "--adapter", tmp_path / "adapter", "--merged", tmp_path / "merged"),
    )
    assert result.returncode == 0, result.stderr
    with safe_open(tmp_path / "merged/model.safetensors", framework="pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is True


def test_the_merged_folder_carries_tokenizer_and_chat_template(small_model, exported):
    ours, base = chat.load_tokenizer(exported / "merged"), chat.load_tokenizer(small_model)
    text = "Numbers like 2026 split, <|im_end|> ends."
    assert ours(text).input_ids == base(text).input_ids
    assert ours.chat_template == base.chat_template
    assert (ours.eos_token_id, ours.pad_token_id) == (base.eos_token_id, base.pad_token_id)


def test_a_weight_that_float16_cannot_hold_is_refused(small_model, tmp_path):
    make_adapter(small_model, tmp_path / "adapter", scale=1e6)
    result = run(
        "merge_adapter.py",
        *("--model", small_model, "--adapter", tmp_path / "adapter", "--merged", tmp_path / "merged"),
    )
    assert result.returncode == 1
    assert "which float16 cannot hold" in result.stderr
    assert not (tmp_path / "merged").exists()


def test_the_f16_gguf_holds_the_merged_weights(exported):
    reader = GGUFReader(exported / "model-f16.gguf")
    tensors = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}
    with safe_open(exported / "merged/model.safetensors", framework="pt") as merged:
        down = merged.get_tensor("model.layers.0.mlp.down_proj.weight")
        assert torch.equal(tensors["blk.0.ffn_down.weight"], down)
        assert len(tensors) == len(merged.keys())
    assert reader.get_field("tokenizer.ggml.pre").contents() == "smollm"


def test_the_file_that_ships_passes_and_is_described(exported):
    result = smoke_test(exported)
    assert result.returncode == 0, result.stderr
    report = json.loads((exported / "smoke_test.json").read_text())
    assert report["tensors"] == len(GGUFReader(exported / "model-q4_k_m.gguf").tensors)
    assert report["tokens_per_second"] > 0
    assert [answer["id"] for answer in report["answers"]] == ["safety-01", "empathy-01", "constructive-01"]
    modelfile = (exported / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-q4_k_m.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}" in modelfile


@pytest.fixture
def broken(exported, tmp_path):
    """A copy of the exported folder to break."""
    return shutil.copytree(exported, tmp_path / "exported", ignore=shutil.ignore_patterns("Modelfile", "*.json"))


def refused(folder, message):
    """Assert that the smoke test refuses a folder with a message and writes nothing."""
    result = smoke_test(folder)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "smoke_test.json").exists()
    assert not (folder / "Modelfile").exists()


def test_a_truncated_file_must_not_ship(exported, broken):
    shutil.copytree(exported / "merged", broken / "merged", dirs_exist_ok=True)
    with open(broken / "model-q4_k_m.gguf", "r+b") as file:
        file.truncate(3_000_000)
    refused(broken, "llama.cpp cannot load")


def test_a_file_of_another_type_must_not_ship(exported, broken):
    shutil.copytree(exported / "merged", broken / "merged", dirs_exist_ok=True)
    shutil.copyfile(broken / "model-f16.gguf", broken / "model-q4_k_m.gguf")
    refused(broken, "metadata general.file_type is '1', not '15'")


def test_a_file_whose_tokenizer_differs_must_not_ship(exported, broken):
    shutil.copytree(exported / "merged", broken / "merged", dirs_exist_ok=True)
    tokenizer = json.loads((broken / "merged/tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    (broken / "merged/tokenizer.json").write_text(json.dumps(tokenizer))
    refused(broken, "other token ids than Hugging Face's for the prompt 'Should I trust")


def test_a_model_that_never_ends_must_not_ship(tmp_path):
    make_small_model(tmp_path / "model", tie_word_embeddings=True)  # says no sentence, random weights only
    make_adapter(tmp_path / "model", tmp_path / "adapter")
    run(
        "merge_adapter.py",
        "--model",
        tmp_path / "model",
        "--adapter",
        tmp_path / "adapter",
        "--merged",
        tmp_path / "merged",
    )
    run("convert_to_gguf.py", "--model", tmp_path / "merged", "--gguf", tmp_path / "model-f16.gguf")
    run("quantize_gguf.py", "--gguf", tmp_path / "model-f16.gguf", "--quantized", tmp_path / "model-q4_k_m.gguf")
    refused(tmp_path, "no answer reached an end token")


def test_quantising_what_is_no_gguf_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a GGUF")
    result = run("quantize_gguf.py", "--gguf", tmp_path / "model.gguf", "--quantized", tmp_path / "small.gguf")
    assert result.returncode == 1
    assert "could not quantise" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_modelfile_says_what_the_chat_template_says(small_model):
    tokenizer = chat.load_tokenizer(small_model)
    parts = turn_parts(tokenizer)
    assert parts["user_open"] == "<|im_start|>user\n"
    assert parts["assistant_open"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert parts["default_system"] == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_a_template_without_system_turns_gives_no_system_line(small_model):
    tokenizer = chat.load_tokenizer(small_model)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert "SYSTEM" not in write_modelfile(tokenizer, "model.gguf", ["Hello"])


def test_a_template_that_go_cannot_say_is_refused(small_model):
    tokenizer = chat.load_tokenizer(small_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }} {% endfor %}"
    with pytest.raises(UserError, match="cannot be written as an Ollama Modelfile"):
        write_modelfile(tokenizer, "model.gguf", ["Hello"])


def test_llama_cpp_gives_the_file_the_log_probabilities_of_the_merged_model(small_model, exported, tmp_path):
    """The f16 file against transformers, on held-out pairs; then what score_gguf makes of the q4_k_m file."""
    tokenizer = chat.load_tokenizer(exported / "merged")
    pairs = [
        {"id": row["id"], "prompt": chat.conversation(row["prompt"])}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in read_jsonl(PROJECT / "data/heldout.jsonl")[:4]
    ]
    sequences = preferences.encode_pairs(tokenizer, pairs)
    merged = completion_logps(load_model(exported / "merged"), sequences)
    found = gguf_chat.completion_logps(exported / "model-f16.gguf", sequences)
    assert [tokens for _, tokens in found] == [logps.tokens for logps in merged]
    assert [total for total, _ in found] == pytest.approx([logps.total for logps in merged], rel=1e-3)

    write_jsonl(tmp_path / "heldout.jsonl", pairs)
    base = preferences.pair_rows(pairs, completion_logps(load_model(small_model), sequences))
    write_json(tmp_path / "base.json", {"heldout": {"pairs": base[:3]}})
    result = run(
        "score_gguf.py",
        *("--gguf", exported / "model-q4_k_m.gguf", "--merged", exported / "merged"),
        *("--heldout", tmp_path / "heldout.jsonl", "--reference", tmp_path / "base.json"),
        *("--settings", json.dumps({"beta": 0.1, "max_pairs": 3}), "--preferences", tmp_path / "shipped.json"),
    )
    assert result.returncode == 0, result.stderr
    shipped = json.loads((tmp_path / "shipped.json").read_text())["heldout"]
    assert shipped["accuracy_per_token"]["n"] == 3
    assert [row["id"] for row in shipped["pairs"]] == [pairs[place]["id"] for place in (0, 1, 2)]
