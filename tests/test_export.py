"""From adapter to the file that ships: what is merged, converted, quantised and refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from dpo import chat, gguf_scores, preferences
from dpo.artifacts import read_json, read_jsonl, write_json, write_jsonl
from dpo.models import completion_logps, load_model
from dpo.quantization import TYPES
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
        *("--prompts", prompts, "--settings", json.dumps({"type": "q4_k_m", "max_new_tokens": 24})),
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
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in modelfile


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


def test_config_may_name_every_type_that_can_be_quantised_to():
    schema = yaml.safe_load((PROJECT / "schemas/config.schema.yaml").read_text())
    assert set(schema["properties"]["export"]["properties"]["types"]["items"]["enum"]) == set(TYPES)


def test_quantising_what_is_no_gguf_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a GGUF")
    result = run("quantize_gguf.py", "--gguf", tmp_path / "model.gguf", "--quantized", tmp_path / "small.gguf")
    assert result.returncode == 1
    assert "could not quantise" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def score_gguf(folder, file, above, scores):
    """Run score_gguf.py on a file of a folder made like `exported`, on four held-out pairs."""
    write_jsonl(scores.with_name("heldout.jsonl"), heldout_pairs())
    return run(
        "score_gguf.py",
        *("--gguf", file, "--above", above, "--model", folder / "merged"),
        *("--heldout", scores.with_name("heldout.jsonl"), "--neutral", PROJECT / "data/neutral.jsonl"),
        *("--prompts", PROJECT / "data/prompts.jsonl", "--settings", '{"max_pairs": 3}', "--scores", scores),
    )


def heldout_pairs():
    """Four held-out pairs as build_dataset.py writes them."""
    return [
        {"id": row["id"], "prompt": chat.conversation(row["prompt"])}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in read_jsonl(PROJECT / "data/heldout.jsonl")[:4]
    ]


def test_llama_cpp_gives_the_file_the_log_probabilities_of_the_merged_model(exported):
    sequences = preferences.encode_pairs(chat.load_tokenizer(exported / "merged"), heldout_pairs())
    merged = completion_logps(load_model(exported / "merged"), sequences)
    llama, _ = gguf_scores.open_for_logits(exported / "model-f16.gguf", 512)
    found = gguf_scores.completion_logps(llama, sequences)
    assert [tokens for _, tokens in found] == [logps.tokens for logps in merged]
    assert [total for total, _ in found] == pytest.approx([logps.total for logps in merged], rel=1e-3)
    # Alone or after another sequence that begins like it, a completion has the same log-probability.
    assert gguf_scores.completion_logps(llama, [sequences[1]])[0][0] == pytest.approx(found[1][0], rel=1e-4)


def test_a_file_is_scored_against_what_it_was_made_from(exported, tmp_path):
    result = score_gguf(exported, exported / "model-f16.gguf", exported / "merged", tmp_path / "f16.json")
    assert result.returncode == 0, result.stderr
    result = score_gguf(exported, exported / "model-q4_k_m.gguf", exported / "model-f16.gguf", tmp_path / "q4_k_m.json")
    assert result.returncode == 0, result.stderr
    f16, quantized = (read_json(tmp_path / f"{name}.json") for name in ("f16", "q4_k_m"))
    assert f16["neutral"]["kl"]["mean"] < quantized["neutral"]["kl"]["mean"] < 1e-3
    assert f16["neutral"]["same_top"] > 0.99
    for scores in (f16, quantized):
        assert len(scores["pairs"]) == 3
        assert scores["token_ids"] == {"prompts": 38, "equal": 38, "first_other": None}
        assert scores["file"]["tokens_per_second"] > 0
        assert scores["file"]["tensors"] == len(GGUFReader(exported / "model-f16.gguf").tensors)
    assert f16["file"]["bits_per_weight"] == pytest.approx(16, abs=0.01)
    # No row of the small model, 64 or 128 weights long, holds a block of 256.
    assert quantized["file"]["short_rows"] == quantized["file"]["matrices"]
    assert not {"Q4_K", "Q6_K"} & set(quantized["file"]["types"])
    assert sum(found["weights"] for found in quantized["file"]["types"].values()) == quantized["file"]["weights"]


def test_another_tokenizer_is_counted_prompt_by_prompt(exported, broken, tmp_path):
    shutil.copytree(exported / "merged", broken / "merged", dirs_exist_ok=True)
    tokenizer = json.loads((broken / "merged/tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    (broken / "merged/tokenizer.json").write_text(json.dumps(tokenizer))
    result = score_gguf(broken, broken / "model-f16.gguf", broken / "merged", tmp_path / "f16.json")
    assert result.returncode == 0, result.stderr
    found = read_json(tmp_path / "f16.json")["token_ids"]
    assert found["equal"] < found["prompts"] == 38
    assert found["first_other"] == read_jsonl(PROJECT / "data/prompts.jsonl")[0]["prompt"]


def damage(file, how):
    """Cut a file in half, or flip a bit near its beginning, where the header stands."""
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[20] ^= 0x40
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("which", ["model", "adapter"])
def test_damaged_safetensors_are_one_clear_error(small_model, exported, tmp_path, which, how):
    shutil.copytree(small_model, tmp_path / "model")
    shutil.copytree(exported / "adapter", tmp_path / "adapter")
    damage(next((tmp_path / which).glob("*.safetensors")), how)
    merge_is_refused(tmp_path, f"{tmp_path / which} cannot be loaded")


def merge_is_refused(folder, message):
    """Assert that merge_adapter.py refuses model and adapter in a folder with a message and writes nothing."""
    arguments = ("--model", folder / "model", "--adapter", folder / "adapter", "--merged", folder / "merged")
    result = run("merge_adapter.py", *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(folder.glob("*merged*")) and not list(folder.glob(".*merged*"))


@pytest.mark.parametrize(
    "other",
    [{"intermediate_size": 96}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}],
    ids=["other shapes", "fewer layers", "more layers"],
)
def test_an_adapter_for_another_base_model_is_refused(exported, tmp_path, other):
    make_small_model(tmp_path / "model", **other)
    shutil.copytree(exported / "adapter", tmp_path / "adapter")
    merge_is_refused(tmp_path, "was made for another base model")


def test_a_tokenizer_with_tokens_that_the_model_has_no_embeddings_for_is_refused(small_model, exported, tmp_path):
    shutil.copytree(small_model, tmp_path / "model")
    shutil.copytree(exported / "adapter", tmp_path / "adapter")
    tokenizer = chat.load_tokenizer(tmp_path / "adapter")
    tokenizer.add_tokens(["<added>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge_is_refused(tmp_path, "has 49,153 tokens, but the model has embeddings for 49,152")


def test_an_architecture_that_the_converter_does_not_know_is_one_clear_error(exported, tmp_path):
    merged = shutil.copytree(exported / "merged", tmp_path / "merged")
    config = read_json(merged / "config.json")
    write_json(merged / "config.json", config | {"architectures": ["UnheardOfForCausalLM"]})
    result = run("convert_to_gguf.py", "--model", merged, "--gguf", tmp_path / "model.gguf")
    assert result.returncode == 1
    assert "llama.cpp's converter cannot convert" in result.stderr and "UnheardOfForCausalLM" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_gguf_is_not_scored(exported, broken, tmp_path, how):
    damage(broken / "model-q4_k_m.gguf", how)
    result = score_gguf(exported, broken / "model-q4_k_m.gguf", exported / "model-f16.gguf", tmp_path / "scores.json")
    assert result.returncode == 1
    assert "is no whole GGUF file" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "scores.json").exists()
