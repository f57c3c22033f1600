"""A model from a stranger: scripts/fetch_model.py."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from hub_server import HubServer
from torture.attacks.canary import (
    SCRATCH,
    SECRET,
    Pickled,
    attack,
    carelessly,
    everything_below,
    outcome,
    run,
    secret_file,
)
from torture.outcome import SILENT


def stranger(folder: Path, model: Path) -> Path:
    """Return a copy of the good model, to be spoilt."""
    copy = folder / "strangers model"
    shutil.copytree(model, copy)
    return copy


def change(file: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


def fetch(folder: Path, model: Path, **options) -> subprocess.CompletedProcess:
    """Run fetch_model.py on a local folder; it writes into `folder / "results"`."""
    return fetch_settings(folder, {"path": str(model)}, **options)


def fetch_settings(folder: Path, settings: dict, **options) -> subprocess.CompletedProcess:
    results = folder / "results"
    files = ["--model", results / "model", "--manifest", results / "manifest.json"]
    return run("fetch_model", "--settings", json.dumps(settings), *files, **options)


def write_pickle(file: Path, canary: Path) -> None:
    """Write a pickle that makes the canary, and show that it does."""
    file.write_bytes(pickle.dumps(Pickled(canary)))
    carelessly(canary, "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", file)


@attack("weights are a pickle alone", "fetch_model")
def pickle_alone(folder, model):
    copy, canary = stranger(folder, model), folder / "fired"
    (copy / "model.safetensors").unlink()
    write_pickle(copy / "pytorch_model.bin", canary)
    return outcome(fetch(folder, copy), folder / "results", copy.name, "no .safetensors", canary=canary)


@attack("safetensors file is a pickle", "fetch_model")
def pickle_in_disguise(folder, model):
    copy, canary = stranger(folder, model), folder / "fired"
    write_pickle(copy / "model.safetensors", canary)
    return outcome(fetch(folder, copy), folder / "results", "model.safetensors", "no whole safetensors", canary=canary)


def sharded(folder: Path, model: Path, part: str) -> Path:
    """Return a copy of the model whose weights have an index that says they all are in `part`."""
    from safetensors import safe_open

    copy = stranger(folder, model)
    with safe_open(copy / "model.safetensors", "np") as weights:
        parts = dict.fromkeys(weights.keys(), part)
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    return copy


def refused_index(folder: Path, copy: Path, part: str, canary: Path | None = None) -> tuple[str, str]:
    words = ("model.safetensors.index.json", part, "no safetensors file of the folder")
    return outcome(fetch(folder, copy), folder / "results", *words, canary=canary)


@attack("index of weights names a pickle", "fetch_model")
def index_to_pickle(folder, model):
    copy, canary = sharded(folder, model, "pytorch_model.bin"), folder / "fired"
    write_pickle(copy / "pytorch_model.bin", canary)
    return refused_index(folder, copy, "pytorch_model.bin", canary)


@attack("index of weights names a file outside", "fetch_model")
def index_to_parent(folder, model):
    copy = sharded(folder, model, "../outside.safetensors")
    shutil.copy(model / "model.safetensors", folder / "outside.safetensors")
    return refused_index(folder, copy, "../outside.safetensors")


@attack("index of weights names an absolute path", "fetch_model")
def index_to_absolute(folder, model):
    outside = str(folder / "outside.safetensors")
    shutil.copy(model / "model.safetensors", outside)
    return refused_index(folder, sharded(folder, model, outside), outside)


@attack("index of weights names a missing part", "fetch_model")
def index_to_nothing(folder, model):
    return refused_index(folder, sharded(folder, model, "model-00002.safetensors"), "model-00002.safetensors")


@attack("weights lack a part of the model", "fetch_model")
def one_layer_more(folder, model):
    copy = stranger(folder, model)
    change(copy / "config.json", num_hidden_layers=3)
    return outcome(fetch(folder, copy), folder / "results", "config.json", "model.layers.2", "its weights lack")


TOUCH = "open({!r}, 'w').close()\n"
EVIL = "strange-group/evil"


@cache
def served_code() -> tuple[HubServer, Path]:
    """Return a hub with a repository of code, and the file that the code makes."""
    canary, repository = SCRATCH / "hub-code-fired", SCRATCH / "evil"
    repository.mkdir()
    for file in ("tok.py", "conf.py"):
        (repository / file).write_text(
            TOUCH.format(str(canary))
            + "from transformers import PreTrainedTokenizerFast as Tok, LlamaConfig as Conf\n"
            + "class Evil(Tok if __name__.endswith('tok') else Conf): pass\n"
        )
    hub = HubServer()
    hub.__enter__()
    hub.add(EVIL, "e" * 40, repository)
    return hub, canary


@attack("tokenizer_config.json names code on the hub", "fetch_model")
def tokenizer_code_on_hub(folder, model):
    # llama.cpp's converter loads tokenizers with trust_remote_code=True.
    hub, canary = served_code()
    copy = stranger(folder, model)
    change(
        copy / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, f"{EVIL}--tok.Evil"]},
        tokenizer_class="Evil",
        vocab_file=str(secret_file(folder)),
    )
    code = "import sys; from transformers import AutoTokenizer as A"
    code += "; A.from_pretrained(sys.argv[1], trust_remote_code=True)"
    carelessly(canary, code, copy, HF_ENDPOINT=hub.url, HF_HOME=str(folder / "careless"))
    before = len(hub.requests)
    result = fetch(folder, copy, answer="y\n" * 9, HF_ENDPOINT=hub.url, HF_HOME=str(folder / "home"))
    if len(hub.requests) > before:
        return SILENT, f"asked the hub: {hub.requests[before:]}"
    if "tok.Evil" in everything_below(folder / "results"):
        return SILENT, "results/ still names the code"
    return outcome(result, folder / "results", canary=canary)


@attack("config.json of an unknown model type names code on the hub, and somebody says yes", "fetch_model")
def model_code_on_hub(folder, model):
    hub, canary = served_code()
    copy = stranger(folder, model)
    change(copy / "config.json", model_type="evil", auto_map={"AutoConfig": f"{EVIL}--conf.Evil"})
    code = "import sys; from transformers import AutoConfig as A; A.from_pretrained(sys.argv[1])"
    before = len(hub.requests)
    result = fetch(folder, copy, answer="y\n" * 9, HF_ENDPOINT=hub.url, HF_HOME=str(folder / "home"))
    if len(hub.requests) > before:
        return SILENT, f"asked the hub: {hub.requests[before:]}"
    found = outcome(result, folder / "results", "config.json", "evil", canary=canary)
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "careless")}
    carelessly_answered(canary, code, copy, **home)
    return found


def carelessly_answered(canary: Path, code: str, *arguments: object, **environment: str) -> None:
    """The same as `carelessly`, for what asks first: somebody says yes."""
    answering = f"import io, sys; sys.stdin = io.StringIO('y\\n' * 9)\n{code}"
    carelessly(canary, answering, *arguments, **environment)


def refused_text(fault: str, file: str, spoil: Callable[[str], str], *words: str, memory: float = 24) -> None:
    """Register an attack on fetch_model through the text of one file of the model."""

    @attack(fault, "fetch_model")
    def spoilt(folder, model):
        copy = stranger(folder, model)
        text = (copy / file).read_text() if (copy / file).exists() else "{}"
        (copy / file).write_text(spoil(text))
        return outcome(fetch(folder, copy, memory=memory), folder / "results", file, *words)


def with_keys(**values: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


def with_text(more: str) -> Callable[[str], str]:
    return lambda text: text.replace("{", "{" + more + ",", 1)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
OTHER = {"peft_type": "LORA", "base_model_name_or_path": f"{EVIL}-base", "task_type": "CAUSAL_LM"}
refused_text(
    "config.json says that the weights are quantised", "config.json", with_keys(quantization_config=BNB), "quant"
)
refused_text("config.json names a function as dtype", "config.json", with_keys(torch_dtype="os.system"), "os.system")
refused_text("config.json has NaN", "config.json", with_text('"rms_norm_eps": NaN'), "NaN")
refused_text("config.json has an infinite number", "config.json", with_text('"x": 1e999'), "too large")
refused_text("config.json is nested deeply", "config.json", with_text('"x": ' + "[" * 99999 + "]" * 99999), "nested")
refused_text("config.json has a key twice", "config.json", with_text('"model_type": "gpt2"'), "stands twice")
refused_text(
    "config.json asks for a billion layers", "config.json", with_keys(num_hidden_layers=10**9), "num_hidden", memory=12
)
refused_text(
    "config.json asks for a vocabulary of 10^15",
    "config.json",
    with_keys(vocab_size=10**15),
    "the file has (49152",
    memory=12,
)
refused_text("adapter_config.json pulls another base model", "adapter_config.json", with_keys(**OTHER), "adapter")
refused_text(
    "tokenizer_config.json is a JSON bomb of numbers",
    "tokenizer_config.json",
    with_text('"x": ' + "9" * 10**6),
    "sound JSON",
)


@attack("a second, pickled adapter beside the weights", "fetch_model")
def pickled_adapter(folder, model):
    copy, canary = stranger(folder, model), folder / "fired"
    change(copy / "adapter_config.json", **OTHER)
    write_pickle(copy / "adapter_model.bin", canary)
    return outcome(fetch(folder, copy), folder / "results", "adapter_config.json", canary=canary)


def refused_link(fault: str, file: str) -> None:
    @attack(fault, "fetch_model")
    def linked(folder, model):
        copy, secret = stranger(folder, model), secret_file(folder)
        (copy / file).unlink(missing_ok=True)
        (copy / file).symlink_to(secret)
        assert SECRET in (copy / file).read_text()
        return outcome(fetch(folder, copy), folder / "results", file, "is a link to", "outside the folder")


for linked_file in ("config.json", "vocab.txt", "chat_template.jinja", "extra.safetensors"):
    refused_link(f"{linked_file} is a link to a secret", linked_file)


@cache
def fetched_in_disguise(model: Path) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """Fetch a sound model, in the layout of the hub's cache, that names code and places in every way at once.

    Returns what came of it, the folder of the attack, and the canary.
    """
    folder = Path(mkdtemp(prefix="disguise-", dir=SCRATCH))
    canary, secret = folder / "fired", secret_file(folder)
    snapshot = folder / "models--some--one" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    source = stranger(folder, model)
    evil = TOUCH.format(str(canary))
    (source / "modeling_evil.py").write_text(evil + "from transformers import LlamaForCausalLM as Evil\n")
    (source / "tok.py").write_text(evil + "from transformers import PreTrainedTokenizerFast as Evil\n")
    (source / "custom_generate").mkdir()
    (source / "custom_generate" / "generate.py").write_text(evil + "def generate(*_, **__): pass\n")
    code = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoTokenizer": [None, "tok.Evil"]}
    change(
        source / "config.json",
        auto_map=code,
        trust_remote_code=True,
        _attn_implementation=f"{EVIL}-kernel",
        _name_or_path="/etc",
        base_model_name_or_path=EVIL,
        transformers_weights=f"../../../{secret.parent.name}/{secret.name}",
    )
    change(
        source / "tokenizer_config.json", auto_map=code, tokenizer_file=str(secret), vocab_file=str(secret),
        name_or_path=EVIL, trust_remote_code=True,
    )  # fmt: skip
    change(source / "generation_config.json", custom_generate=EVIL, trust_remote_code=True)
    write_pickle(source / "pytorch_model.bin", canary)
    naive = (
        "from transformers import AutoModelForCausalLM as A; import sys; A.from_pretrained({}, trust_remote_code=True)"
    )
    carelessly(canary, naive.format("sys.argv[1]"), source, HF_HOME=str(folder / "careless"))
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
        else:
            shutil.copytree(file, snapshot / file.name)
    return fetch(folder, snapshot, answer="y\n" * 9, HF_HOME=str(folder / "home")), folder, canary


def disguised(fault: str, gone: str) -> None:
    """Register an attack that is part of `fetched_in_disguise`; `gone` must not be in what is kept of the model."""

    @attack(fault, "fetch_model")
    def part(folder, model):
        result, where, canary = fetched_in_disguise(model)
        kept = where / "results" / "model"
        if gone in "\n".join([*(file.name for file in kept.iterdir()), everything_below(kept / "config.json")]):
            return SILENT, f"{gone} is still in results/"
        if gone in everything_below(kept / "tokenizer_config.json") + everything_below(kept / "generation_config.json"):
            return SILENT, f"{gone} is still in results/"
        return outcome(result, where / "results", canary=canary)


disguised("pickle beside good safetensors", "pytorch_model.bin")
disguised("config.json of a known model type names code in the folder", "modeling_evil")
disguised("tokenizer_config.json names code in the folder", "tok.Evil")
disguised("generation_config.json and a folder of code for generation", "custom_generate")
disguised("trust_remote_code in every file of settings", "trust_remote_code")
disguised("attention from a kernel on the hub", "_attn_implementation")
disguised("tokenizer_file and vocab_file name a secret", "secret.txt")
disguised("transformers_weights names a file outside", "transformers_weights")
