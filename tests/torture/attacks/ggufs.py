"""GGUF files from a stranger: quantising, judging with, testing and scoring them."""

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torture.attacks.canary import SCRATCH, attack, carelessly, outcome, run
from torture.attacks.judges import ROWS, judge
from torture.attacks.templates import CHATML, ESCAPES, LOOP, NAIVE, write_rows
from torture.outcome import REFUSED, SILENT


@cache
def sound_gguf(model: Path) -> Path:
    """Convert the good model to a GGUF file, once."""
    gguf = SCRATCH / "sound.gguf"
    result = run("convert_to_gguf", "--model", model, "--gguf", gguf)
    assert result.returncode == 0, result.stderr
    return gguf


def header(tensors: int = 0, pairs: int = 0) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, pairs)


def text(value: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value.encode()) if length is None else length) + value.encode()


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        assert content.count(old) >= 1, old
        return content.replace(old, new, 1)

    return spoil


STRING, ARRAY = 8, 9
SPOILT_GGUFS: dict[str, Callable[[bytes], bytes]] = {
    "counts of 2^62": lambda content: header(2**62, 2**62) + content[24:],
    "no more than a header": lambda content: header(3, 3),
    "cut in the middle": lambda content: content[: len(content) // 2],
    "a string of 2^63 bytes": lambda content: header(0, 1) + text("x", 2**63) + content,
    "an array of 2^60 strings": lambda c: header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**60) + c,
    "arrays nested without end": lambda c: header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 99999,
    "a value of no type": lambda content: header(0, 1) + text("a") + struct.pack("<I", 99) + content,
    "the architecture is a number": replaced(
        text("general.architecture") + struct.pack("<I", STRING), text("general.architecture") + struct.pack("<I", 4)
    ),
    "an architecture of HTML and escapes": replaced(
        text("general.architecture") + struct.pack("<I", STRING) + text("llama"),
        text("general.architecture") + struct.pack("<I", STRING) + text("<script>\x1b[2J"),
    ),
    "no layers": replaced(
        text("llama.block_count") + struct.pack("<II", 4, 2), text("llama.block_count") + struct.pack("<II", 4, 0)
    ),
    "2^32 - 1 layers": replaced(
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("llama.block_count") + struct.pack("<II", 4, 2**32 - 1),
    ),
    "no heads": replaced(
        text("llama.attention.head_count") + struct.pack("<II", 4, 4),
        text("llama.attention.head_count") + struct.pack("<II", 4, 0),
    ),
    "an alignment of 0": lambda content: (
        struct.pack("<4sIQQ", *struct.unpack("<4sIQQ", content[:24])[:3], struct.unpack("<Q", content[16:24])[0] + 1)
        + text("general.alignment")
        + struct.pack("<II", 4, 0)
        + content[24:]
    ),
}


def spoilt_gguf(how: str) -> None:
    @attack(f"GGUF with {how}", "quantize_gguf, check_judge")
    def spoilt(folder, model):
        gguf = folder / "strangers.gguf"
        gguf.write_bytes(SPOILT_GGUFS[how](sound_gguf(model).read_bytes()))
        quantized = run("quantize_gguf", "--gguf", gguf, "--quantized", folder / "q" / "out.gguf", memory=12)
        found = outcome(quantized, folder / "q", gguf.name)
        if found[0] != REFUSED:
            return SILENT, f"quantize_gguf: {found}"
        return outcome(judge(folder, {"gguf": str(gguf)}, memory=12), folder / "judges", gguf.name)


for gguf_fault in SPOILT_GGUFS:
    spoilt_gguf(gguf_fault)


@cache
def judged_by_template(model: Path) -> Path:
    """Return a GGUF file whose chat template can be overwritten by another one of at most the same length."""
    copy = SCRATCH / "long-template"
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").write_text(CHATML + "{#" + "x" * 400 + "#}")
    gguf = SCRATCH / "long-template.gguf"
    result = run("convert_to_gguf", "--model", copy, "--gguf", gguf)
    assert result.returncode == 0, result.stderr
    return gguf


def judge_template(fault: str, template: str, *words: str) -> None:
    @attack(fault, "check_judge")
    def judged(folder, model):
        canary, gguf = folder / "fired", folder / "strangers.gguf"
        old = (CHATML + "{#" + "x" * 400 + "#}").encode()
        evil = template.replace("CMD", f"'touch {canary}'")
        if "CMD" in template:
            carelessly(canary, NAIVE, evil)
        new = (evil + CHATML).encode()
        new += b"{#" + b"x" * (len(old) - len(new) - 4) + b"#}"
        gguf.write_bytes(replaced(old, new)(judged_by_template(model).read_bytes()))
        result = judge(folder, {"gguf": str(gguf)}, memory=12)
        return outcome(result, folder / "judges", gguf.name, *words, canary=canary)


judge_template("chat template of a judge's GGUF tries to escape", ESCAPES["cycler's globals"], "unsafe")
judge_template("chat template of a judge's GGUF never ends", LOOP)


def foreign_gguf(how: str, program: str) -> None:
    @attack(f"GGUF with {how}", program)
    def foreign(folder, model):
        gguf = folder / "strangers.gguf"
        gguf.write_bytes(SPOILT_GGUFS[how](sound_gguf(model).read_bytes()))
        if program == "smoke_test_gguf":
            settings = json.dumps({"type": "q4_k_m", "max_new_tokens": 8})
            files = ["--f16", sound_gguf(model), "--merged", model, "--prompts", "data/prompts.jsonl"]
            files += ["--modelfile", folder / "out" / "Modelfile", "--report", folder / "out" / "smoke.json"]
        else:
            settings = json.dumps({"max_pairs": 2})
            files = ["--above", sound_gguf(model), "--model", model, "--neutral", "data/neutral.jsonl"]
            files += ["--heldout", write_rows(folder / "pairs.jsonl", ROWS), "--prompts", "data/prompts.jsonl"]
            files += ["--scores", folder / "out" / "scores.json"]
        result = run(program, "--gguf", gguf, "--settings", settings, *files, memory=12)
        return outcome(result, folder / "out", gguf.name)


ATTACKED = {"smoke_test_gguf": ("no layers", "counts of 2^62"), "score_gguf": ("2^32 - 1 layers", "an alignment of 0")}
for attacked, gguf_faults in ATTACKED.items():
    for gguf_fault in gguf_faults:
        foreign_gguf(gguf_fault, attacked)
