"""Chat templates from a stranger, in conversations: scripts/build_dataset.py, and in scripts/fetch_model.py."""

import json
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from torture.attacks.canary import SCRATCH, SECRET, attack, carelessly, outcome, run, secret_file
from torture.attacks.models import fetch, stranger
from torture.outcome import SILENT

ESCAPES = {
    "cycler's globals": "{{ cycler.__init__.__globals__.os.system(CMD) }}",
    "lipsum's globals": "{{ lipsum.__globals__['os'].system(CMD) }}",
    "subclasses": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['system'](CMD) }}{% endif %}{% endfor %}",
    "filter attr": "{{ cycler|attr('__init__')|attr('__globals__')|attr('get')('os')|attr('system')(CMD) }}",
    "namespace's globals": "{{ namespace.__init__.__globals__['__builtins__']['__import__']('os').system(CMD) }}",
    "filter map": "{{ [cycler]|map(attribute='__init__.__globals__')|map(attribute='os')|map(attribute='environ')"
    "|map('string')|join }}{{ cycler.__init__.__globals__.os.system(CMD) }}",
}
LEAKS = {
    "format": "{{ '{0.__init__.__globals__[os].environ}'.format(cycler) }}",
    "format through attr": "{{ ('{0.__init__.__globals__[os].environ}'|attr('format'))(cycler) }}",
    "format kept in a variable": "{% set f = '{0.__init__.__globals__[os].environ}'.format %}{{ f(cycler) }}",
    "include": "{% include 'FILE' %}",
    "import": "{% import 'FILE' as x %}{{ x }}",
}
NAIVE = """
import jinja2, os, sys
page = jinja2.Environment(loader=jinja2.FileSystemLoader('/')).from_string(sys.argv[1]).render()
if len(sys.argv) > 2 and sys.argv[3] in page:
    open(sys.argv[2], 'w').close()
"""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CRIES = {name: f"Please try {name} now." for name in (*ESCAPES, *LEAKS)}


@cache
def built_with_templates(model: Path) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """Build a data set with a chat template that tries each escape when a prompt asks for it."""
    folder = Path(mkdtemp(prefix="templates-", dir=SCRATCH))
    canary, secret = folder / "fired", secret_file(folder)
    template = CHATML
    for name, text in (ESCAPES | LEAKS).items():
        text = text.replace("CMD", f"'touch {canary}'").replace("FILE", str(secret))
        found = (canary, SECRET) if name in LEAKS else ()
        carelessly(canary, NAIVE, text, *found, ATTACK=SECRET)
        template = f"{{% if messages[0].content == {CRIES[name]!r} %}}{text}{{% endif %}}" + template
    copy = stranger(folder, model)
    (copy / "chat_template.jinja").write_text(template)
    rows = [
        {"id": f"row-{number}", "prompt": text, "chosen": f"No {number}.", "rejected": f"Yes {number}."}
        for number, text in enumerate([*CRIES.values(), "A plain question?"])
    ]
    return build(folder, copy, write_rows(folder / "pairs.jsonl", rows), ATTACK=SECRET), folder, canary


def write_rows(file: Path, rows: list[dict]) -> Path:
    """Write a JSON Lines file and return its path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


LIMITS = {
    "max_length": 512,
    "max_prompt_length": 256,
    "min_score_difference": 0,
    "min_score_ratio": 2,
    "near_duplicate": 0.99,
}


def build(
    folder: Path, model: Path, *files: Path | dict, trained: Path | None = None, **options
) -> subprocess.CompletedProcess:
    """Run build_dataset.py on files; it writes into `folder / "data"`."""
    sources = [file if isinstance(file, dict) else {"path": str(file)} for file in files]
    outputs = {
        "dataset": "train.jsonl",
        "rejected": "rejected.jsonl",
        "prompts": "train.prompts.npy",
        "audit": "a.json",
    }
    arguments = [part for key, name in outputs.items() for part in (f"--{key}", folder / "data" / name)]
    settings = json.dumps(LIMITS | {"sources": sources})
    return run("build_dataset", "--model", model, "--settings", settings, *arguments, OMP_NUM_THREADS="1", **options)


def escaping(name: str) -> None:
    @attack(f"chat template tries to escape: {name}", "build_dataset")
    def escape(folder, model):
        result, where, canary = built_with_templates(model)
        rejected = [json.loads(line) for line in (where / "data" / "rejected.jsonl").read_text().splitlines()]
        lines = {row["line"]: row["detail"] for row in rejected}
        number = list(CRIES).index(name) + 1
        if number not in lines:
            return SILENT, "the row was taken, so the template did something"
        found, _ = outcome(result, where / "data", canary=canary)
        return found, lines[number][:300]


for escape_name in CRIES:
    escaping(escape_name)


def refused_template(fault: str, text: str, *words: str) -> None:
    @attack(fault, "fetch_model")
    def template(folder, model):
        copy, canary = stranger(folder, model), folder / "fired"
        (copy / "chat_template.jinja").write_text(text.replace("CMD", f"'touch {canary}'") + CHATML)
        result = fetch(folder, copy, memory=12)
        return outcome(result, folder / "results", "chat template", *words, canary=canary)


LOOP = 3 * "{% for a in range(99999) %}" + 3 * "{% endfor %}"
refused_template("chat template tries to escape", ESCAPES["cycler's globals"], "unsafe")
refused_template("chat template that never ends", LOOP, "does not end within")
refused_template("chat template that takes all memory", "{{ 'x' * 10 ** 12 }}", "MemoryError")
refused_template("chat template with a number of 10^10 digits", "{{ 10 ** (10 ** 10) % 7 }}", "does not end within")
