"""What is exported, in the hands of llama.cpp's own programs; importance matrices; and files that are refused."""

import resource
import shutil
import subprocess
import sys

import llama_cpp
import pytest
import torch
from gguf import GGUFReader, GGUFValueType

from dpo import gguf_chat, llama_cpp_source, llama_cpp_tools, quantization
from dpo.artifacts import read_jsonl, write_jsonl
from dpo.cli import UserError
from dpo.llama_cpp_tools import find_tool
from small_model import ANSWER, make_small_model
from workflow import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))
from compute_imatrix import choose_chunk

CHUNK = 128  # tokens


def run(script, *arguments):
    """Run a program of the workflow; return the finished process."""
    command = [sys.executable, str(PROJECT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def run_tool(name, folder, *arguments):
    """Run one of llama.cpp's programs in a folder, with nobody at the keyboard; return what it prints."""
    command = [find_tool(name), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def training_rows(count):
    """The first training pairs of the project, as build_dataset writes them."""
    return [
        {"id": row["id"], "prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in read_jsonl(PROJECT / "data/preferences.jsonl")[:count]
    ]


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory):
    """A folder with the small model's f16 and q4_k_m files, training pairs and an importance matrix. Read only."""
    folder = tmp_path_factory.mktemp("exported")
    write_jsonl(folder / "train.jsonl", training_rows(20))
    f16, q4_k_m, imatrix = folder / "model-f16.gguf", folder / "model-q4_k_m.gguf", folder / "imatrix.gguf"
    steps = [
        ("convert_to_gguf.py", "--model", small_model, "--gguf", f16),
        ("quantize_gguf.py", "--gguf", f16, "--quantized", q4_k_m),
        (
            "compute_imatrix.py",
            *("--gguf", f16, "--model", small_model, "--train", folder / "train.jsonl", "--imatrix", imatrix),
        ),
    ]
    for step in steps:
        result = run(*step)
        assert result.returncode == 0, result.stderr
    return folder


def quantize(folder, *options):
    """Run quantize_gguf.py on a folder's f16 file; return (the finished process, the file to write)."""
    quantized = folder / "made" / "model.gguf"
    return run("quantize_gguf.py", "--gguf", folder / "model-f16.gguf", *options, "--quantized", quantized), quantized


def refused(folder, message, *options):
    """Assert that quantizing a folder's f16 file is refused with one message, and that nothing is left of it."""
    result, quantized = quantize(folder, *options)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert not quantized.parent.exists() or not list(quantized.parent.iterdir())


def perplexity(gguf, text):
    """Return a text's perplexity as llama-perplexity defines it: over the second half of each whole chunk of tokens."""
    llama, _ = gguf_chat.open_gguf(gguf, CHUNK, n_batch=CHUNK, logits_all=True)
    ids = llama.tokenize(text.encode(), add_bos=True, special=False)
    begins_with_bos = llama_cpp.llama_vocab_get_add_bos(llama._model.vocab)
    lost = []
    for start in range(0, len(ids) - CHUNK + 1, CHUNK):
        chunk = ids[start : start + CHUNK]
        llama.reset()
        llama.eval([llama.token_bos(), *chunk[1:]] if begins_with_bos else chunk)
        predicting = torch.from_numpy(llama.scores[CHUNK // 2 : CHUNK - 1].copy())
        lost.append(torch.nn.functional.cross_entropy(predicting, torch.tensor(chunk[CHUNK // 2 + 1 :])))
    return torch.stack(lost).double().mean().exp().item()


def test_llama_perplexity_finds_what_log_probabilities_through_llama_cpp_python_say(exported, tmp_path):
    # The model foresees only its one sentence, so half of the text is that: elsewhere any token is as good as another.
    texts = [f"{row['text']}\n{ANSWER}\n{ANSWER}\n" for row in read_jsonl(PROJECT / "data/neutral.jsonl")]
    (tmp_path / "text.txt").write_text("".join(texts))
    printed = run_tool(
        "llama-perplexity",
        tmp_path,
        *("--model", exported / "model-q4_k_m.gguf", "--file", "text.txt", "--ctx-size", CHUNK, "--threads", 1),
    )
    theirs = float(printed.partition("Final estimate: PPL = ")[2].split()[0])
    ours = perplexity(exported / "model-q4_k_m.gguf", "".join(texts))
    assert 10 < ours < 40_000, "the text must tell a shifted token from the right one"
    assert theirs == pytest.approx(ours, rel=0.01)


def test_llama_cli_answers_in_the_file_s_own_chat_template(exported, tmp_path):
    printed = run_tool(
        "llama-cli",
        tmp_path,
        *("--model", exported / "model-q4_k_m.gguf", "--prompt", "Is this true?", "--single-turn", "--simple-io"),
        *("--temp", 0, "--predict", 64, "--threads", 1, "--no-show-timings"),
    )
    answer = printed.partition("> Is this true?\n")[2].partition("Exiting...")[0].strip()
    assert answer == ANSWER


def test_gguf_reader_and_llama_cpp_read_the_same(exported):
    reader = GGUFReader(exported / "model-q4_k_m.gguf")
    llama, _ = gguf_chat.open_gguf(exported / "model-q4_k_m.gguf", CHUNK)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types[0] != GGUFValueType.ARRAY and not name.startswith("GGUF.")
    }
    assert llama.metadata.keys() == fields.keys()
    for name, value in fields.items():
        if isinstance(value, float):
            assert float(llama.metadata[name]) == pytest.approx(value)
        else:
            assert llama.metadata[name] == (str(value).lower() if isinstance(value, bool) else str(value))
    assert reader.get_field("GGUF.tensor_count").contents() == len(reader.tensors)
    assert llama_cpp.llama_model_n_params(llama.model) == sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert llama_cpp.llama_model_size(llama.model) == sum(int(tensor.n_bytes) for tensor in reader.tensors)


def test_a_failed_build_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(UserError, match=r"llama-imatrix could not be compiled; `make \.venv` completes what it needs"):
        llama_cpp_tools.compile_tool("llama-imatrix", tmp_path / "llama-imatrix")
    assert not list(tmp_path.iterdir())


def test_two_programs_that_need_a_tool_at_once_compile_it_once(tmp_path):
    archive = llama_cpp_source.find_archive()
    (tmp_path / "share/llama-cpp-python").mkdir(parents=True)
    (tmp_path / "share/llama-cpp-python" / archive.name).symlink_to(archive)
    program = "import sys; sys.prefix = sys.argv[1]; from dpo.llama_cpp_tools import find_tool"
    command = [sys.executable, "-c", f"{program}; print(find_tool('llama-quantize'))", str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=PROJECT / "scripts", stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    lines = sorted(line for process in started for line in process.communicate()[0].splitlines())
    *found, said = lines
    assert said.startswith("compiling llama.cpp's llama-quantize, this once: 20 seconds")
    assert len(found) == 2 and found[0] == found[1]
    assert "usage: " in subprocess.run([found[0], "--help"], cwd="/", capture_output=True, text=True).stdout


@pytest.mark.parametrize("type", ["q4_k_m", "iq2_xs"])
def test_an_importance_matrix_changes_the_file_into_what_llama_quantize_makes(exported, tmp_path, type):
    options = ("--imatrix", exported / "imatrix.gguf", "--type", type)
    shutil.copy(exported / "model-f16.gguf", tmp_path)
    result, quantized = quantize(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    run_tool(
        "llama-quantize",
        exported,
        *("--imatrix", "imatrix.gguf", "model-f16.gguf", tmp_path / "theirs.gguf", type, "1"),
    )
    assert quantized.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    if type == "q4_k_m":
        before, after = (GGUFReader(file) for file in (exported / "model-q4_k_m.gguf", quantized))
        changed = [
            a.name for a, b in zip(before.tensors, after.tensors, strict=True) if a.data.tobytes() != b.data.tobytes()
        ]
        assert "blk.0.ffn_down.weight" in changed and "token_embd.weight" not in changed
        assert after.get_field("quantize.imatrix.dataset").contents() == "training-pairs.txt"


def test_an_importance_matrix_covers_every_matrix_of_the_layers_and_is_reproducible(small_model, exported, tmp_path):
    means, noted = quantization.read_imatrix(exported / "imatrix.gguf")
    matrices = {
        tensor.name: int(tensor.shape[0])
        for tensor in GGUFReader(exported / "model-f16.gguf").tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    assert {name: values.size for name, values in means.items()} == matrices
    assert all((values > 0).all() for values in means.values())

    again = tmp_path / "again.gguf"
    arguments = ("--gguf", exported / "model-f16.gguf", "--model", small_model, "--train", exported / "train.jsonl")
    result = run("compute_imatrix.py", *arguments, "--imatrix", again)
    assert f"reading {noted['quantize.imatrix.chunks_count']} chunks of 512 tokens" in result.stdout
    assert again.read_bytes() == (exported / "imatrix.gguf").read_bytes()


def test_little_text_is_read_in_shorter_chunks():
    assert [choose_chunk(tokens) for tokens in (100_000, 2048, 2047, 500, 128)] == [512, 512, 256, 64, 32]
    with pytest.raises(UserError, match="have 127 tokens, an importance matrix needs at least 128"):
        choose_chunk(127)


def test_one_short_pair_is_too_little_text(small_model, exported, tmp_path):
    [row] = training_rows(1)
    row["chosen"][0]["content"] = row["rejected"][0]["content"] = "Yes."
    write_jsonl(tmp_path / "train.jsonl", [row])
    arguments = ("--gguf", exported / "model-f16.gguf", "--model", small_model, "--train", tmp_path / "train.jsonl")
    result = run("compute_imatrix.py", *arguments, "--imatrix", tmp_path / "made/imatrix.gguf")
    assert result.returncode == 1
    assert "give more pairs, or set `export.imatrix: false`" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "made").exists()


def test_llama_imatrix_s_own_words_are_quoted_where_it_fails(small_model, exported, tmp_path):
    (tmp_path / "model-f16.gguf").write_bytes((exported / "model-f16.gguf").read_bytes()[:3_000_000])
    arguments = ("--gguf", tmp_path / "model-f16.gguf", "--model", small_model, "--train", exported / "train.jsonl")
    result = run("compute_imatrix.py", *arguments, "--imatrix", tmp_path / "made/imatrix.gguf")
    assert result.returncode == 1
    assert "llama-imatrix failed" in result.stderr and "is not within the file bounds" in result.stderr
    assert not list((tmp_path / "made").iterdir())


def flip(position, bit):
    """Return a function that flips one bit of a file's content."""
    return lambda content: content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


# Of the header: magic (4 bytes), version (uint32), number of tensors (uint64), number of metadata entries (uint64).
DAMAGES = {
    "empty": (lambda content: b"", "failed to read magic"),
    "no GGUF": (lambda content: b"not a GGUF", "invalid magic characters"),
    "truncated in the tensors": (lambda content: content[:3_000_000], "not within the file bounds"),
    "truncated in the metadata": (lambda content: content[:300_000], "failed to read key-value pairs"),
    "another magic": (flip(0, 0), "invalid magic characters"),
    "another version": (flip(5, 3), "version 2051"),
    "a tensor less": (flip(8, 0), "not found"),
    "far too many tensors": (flip(14, 6), "could not quantise"),
    "an entry less": (flip(16, 0), "could not quantise"),
    "far too many entries": (flip(22, 6), "could not quantise"),
    "a longer first key": (flip(24, 2), "could not quantise"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(exported, tmp_path, damage):
    change, message = DAMAGES[damage]
    (tmp_path / "model-f16.gguf").write_bytes(change((exported / "model-f16.gguf").read_bytes()))
    refused(tmp_path, message, "--type", "q8_0")


@pytest.mark.parametrize("damage", ["empty", "no GGUF", "truncated", "a model"])
def test_what_is_no_importance_matrix_is_refused(exported, tmp_path, damage):
    contents = {
        "empty": b"",
        "no GGUF": b"not a GGUF",
        "truncated": (exported / "imatrix.gguf").read_bytes()[:2000],
        "a model": (exported / "model-q4_k_m.gguf").read_bytes(),
    }
    shutil.copy(exported / "model-f16.gguf", tmp_path)
    (tmp_path / "imatrix.gguf").write_bytes(contents[damage])
    refused(tmp_path, "imatrix.gguf is no whole importance matrix", "--imatrix", tmp_path / "imatrix.gguf")


def test_a_full_disk_is_told_and_leaves_nothing(exported, tmp_path):
    shutil.copy(exported / "model-f16.gguf", tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))  # the largest file that may be written, in bytes
    try:
        refused(tmp_path, "File too large, while writing ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_importance_matrix_of_another_model_is_refused(exported, tmp_path):
    make_small_model(tmp_path / "model", intermediate_size=192)
    run("convert_to_gguf.py", "--model", tmp_path / "model", "--gguf", tmp_path / "model-f16.gguf")
    message = "imatrix size 128 is different from tensor size 192 for blk.0.ffn_down.weight"
    refused(tmp_path, message, "--imatrix", exported / "imatrix.gguf")


def test_a_type_that_needs_an_importance_matrix_is_refused_without_one(exported, tmp_path):
    shutil.copy(exported / "model-f16.gguf", tmp_path)
    refused(tmp_path, "as iq2_xs only with an importance matrix; set `export.imatrix: true`", "--type", "iq2_xs")


def test_an_unknown_type_is_refused(exported, tmp_path):
    shutil.copy(exported / "model-f16.gguf", tmp_path)
    result, quantized = quantize(tmp_path, "--type", "q9_k")
    assert result.returncode == 2
    assert "invalid choice: 'q9_k'" in result.stderr
    assert not quantized.parent.exists()


def test_llama_cpp_says_which_types_need_an_importance_matrix(tmp_path):
    # Rows of 256 weights: narrower ones fall back to types that need none.
    make_small_model(tmp_path / "model", hidden_size=256, intermediate_size=256, head_dim=64, tie_word_embeddings=True)
    run("convert_to_gguf.py", "--model", tmp_path / "model", "--gguf", tmp_path / "model-f16.gguf")
    lines = []
    keep = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text.decode()))
    llama_cpp.llama_log_set(keep, None)
    options = llama_cpp.llama_model_quantize_default_params()
    options.dry_run = True
    need = set()
    try:
        for type, options.ftype in quantization.TYPES.items():
            lines.clear()
            assert llama_cpp.llama_model_quantize(bytes(tmp_path / "model-f16.gguf"), b"", options) == 0, type
            if any("will require an imatrix" in line for line in lines):
                need.add(type)
    finally:  # or llama.cpp would call what is gone by then
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)
    assert need == quantization.NEED_IMATRIX | {"iq3_xs", "iq3_xxs"}
    refused(tmp_path, "as iq3_xxs only with an importance matrix; set `export.imatrix: true`", "--type", "iq3_xxs")
