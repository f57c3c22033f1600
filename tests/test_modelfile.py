"""The Modelfile against the chat template: what Ollama makes of a conversation, by Go's own text/template.

Beside SmolLM2's own chat template its tokenizer gets others, which differ in what a Modelfile has to say.
"""

import json
import os
import shutil
import subprocess
from itertools import cycle

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from jinja2 import TemplateError
from tokenizers.processors import TemplateProcessing

from dpo import chat
from dpo.cli import UserError
from dpo.modelfile import turn_parts, write_modelfile
from workflow import PROJECT

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # Llama 3
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
TURNS = (  # of Gemma, whose assistant has another name
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ REFUSE }}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] }}"
    "{{ '<end_of_turn>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DATED = (  # Llama 3.2: a system turn in any case, with more in it than the system text; white space is stripped
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{{ bos_token + '[system]\nToday: 26 Jul 2024\n\n' + (system | trim) + '[end]' }}"
    "{% for m in rest %}{{ '[' + m['role'] + ']\n' + (m['content'] | trim) + '[end]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
ODD = (  # marks that Go or the Modelfile would take for their own, and characters that Ollama drops
    r"{% for m in messages %}{{ '{{ .System }}{{{{\"\"\"\n\"\"\"' + m['role'] + ' {\\n}}\u00a0\r\n' + m['content'] }}"
    r"{{ '{\u200b-}}\"' }}{% endfor %}{% if add_generation_prompt %}{{ '`{{\"\"\"`{' }}{% endif %}"
)
WITH_DEFAULT = "{{% if messages[0]['role'] != 'system' %}}{{{{ {default} }}}}{{% endif %}}{chatml}"
TEMPLATES = {
    "smollm2": None,
    "chatml": CHATML,
    "headers": HEADERS,
    "zephyr": ZEPHYR,
    "turns": TURNS.replace("REFUSE", "raise_exception('no system turns')"),
    "turns that leave system messages out": TURNS.replace("{{ REFUSE }}", ""),
    "dated": DATED,
    "odd": ODD,
    "default with marks": WITH_DEFAULT.format(
        default=r"""'<|im_start|>system\n "Be" {{ .Role }},\n\tI say.\\n "<|im_end|>\n'""", chatml=CHATML
    ),
    "default that SYSTEM cannot say": WITH_DEFAULT.format(
        default=r"""'<|im_start|>system\n\u00a0\U0001fae0{{ """ + '"""' + r"""\r\n.<|im_end|>\n'""", chatml=CHATML
    ),
}
NASTY = [
    *(
        "{{",
        "}}",
        "{{ .System }}",
        '{{ range .Messages }}"',
        "{{- /* */ -}}",
        "{% raw %}",
        "{# #}",
        '"',
        '"""',
        '"""\n',
    ),
    *(
        "\\",
        "\\n",
        "`",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " ",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x00",
        "\x1b",
        "\x7f",
    ),
    *(
        "é",
        "e\u0301",
        "日本",
        "👩\u200d🚀",
        "<|im_end|>",
        "<|im_start|>user\n",
        "</s>",
        "<no value>",
        "&lt;<b>'",
        "%s %v",
    ),
]
TEXT = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=6).map("".join)


def conversation(system, texts):
    """Messages of user and assistant in turn, after a system text if there is one."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [
        {"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
    ]


def conversations():
    """Some made by hand, others by Hypothesis, the same ones every time; each is alone, and after a system text."""
    texts = [
        ["Hello"],
        ["Hello", "Hi.", "And then?"],
        ["Hello", "Hi."],
        [""],
        ["", "", ""],
        *([text] for text in NASTY),
    ]
    texts += [[text + "a" + text, "b" + text, text, text + "c", "d"] for text in NASTY]

    # A busy machine may take its time.
    @settings(derandomize=True, database=None, max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(TEXT, min_size=1, max_size=6))
    def invent(invented):
        texts.append(invented)

    invent()
    systems = [*NASTY, "", "Be brief."]
    return [
        conversation(system, said)
        for place, said in enumerate(texts)
        for system in (None, systems[place % len(systems)])
    ]


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    """A function from a Modelfile's text and conversations to the texts that Ollama would give the model."""
    if not shutil.which("go"):
        pytest.skip("there is no Go on PATH to render Ollama's templates with (Debian: apt-get install golang-go)")
    folder = tmp_path_factory.mktemp("go")
    source, program = PROJECT / "tests/render_modelfile.go", folder / "render_modelfile"
    offline = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOCACHE": str(folder / "cache"), "CGO_ENABLED": "0"}
    built = subprocess.run(
        ["go", "build", "-o", program, source], cwd=folder, env=os.environ | offline, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr

    def render(modelfile, conversations):
        (folder / "Modelfile").write_text(modelfile, encoding="utf-8", newline="")
        result = subprocess.run(
            [program, folder / "Modelfile"], input=json.dumps(conversations).encode(), capture_output=True
        )
        assert result.returncode == 0, result.stderr.decode()
        return json.loads(result.stdout)

    return render


@pytest.fixture
def tokenizer(small_model):
    return chat.load_tokenizer(small_model)


def expected(tokenizer, messages):
    """The chat template's text up to the answer, or None if it refuses the messages."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_renders_what_the_chat_template_renders(tokenizer, ollama, name):
    tokenizer.chat_template = TEMPLATES[name] or tokenizer.chat_template
    cases, prompts = conversations(), ["Hello", "Hi\n"]
    if "trim" in tokenizer.chat_template:  # which Go cannot
        prompts.remove("Hi\n")
        cases = [messages for messages in cases if all(m["content"] == m["content"].strip() for m in messages)]
    wanted = [expected(tokenizer, messages) for messages in cases]
    found = ollama(write_modelfile(tokenizer, "model.gguf", prompts), cases)
    compared = [texts for texts in zip(found, wanted, strict=True) if texts[1] is not None]
    for text, template_text in compared:  # one at a time: pytest would take minutes to compare all in one
        assert text == template_text
    assert len(compared) > 100


@pytest.mark.parametrize("name", ["smollm2", "chatml", "headers", "zephyr", "odd", "default with marks"])
def test_a_system_text_may_come_later(tokenizer, ollama, name):
    tokenizer.chat_template = TEMPLATES[name] or tokenizer.chat_template
    messages = conversation(None, ["Hello", "Hi."]) + conversation("Be brief.", ["And then?"])
    assert ollama(write_modelfile(tokenizer, "model.gguf", []), [messages]) == [expected(tokenizer, messages)]


def test_a_start_token_that_llama_cpp_adds_does_not_come_twice(tokenizer, ollama):
    tokenizer.chat_template = TEMPLATES["headers"]
    token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.bos_token_id)]
    )
    for messages in conversation(None, ["Hello"]), conversation("Be brief.", ["Hello", "Hi.", "And then?"]):
        [text] = ollama(write_modelfile(tokenizer, "model.gguf", ["Hello"]), [messages])
        assert tokenizer(text).input_ids == chat.prompt_ids(tokenizer, messages)


def test_the_parts_of_the_chat_template_are_found(tokenizer):
    parts = turn_parts(tokenizer)
    assert parts.start == ""
    assert parts.turns == {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
    assert parts.header == "<|im_start|>assistant\n"
    assert parts.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_a_template_without_a_default_gives_no_system_line(tokenizer):
    tokenizer.chat_template = TEMPLATES["chatml"]
    assert "SYSTEM" not in write_modelfile(tokenizer, "model.gguf", ["Hello"])


REFUSED = {
    "texts are changed": "{% for m in messages %}{{ m['content'] | upper }} {% endfor %}",
    "turns are numbered": "{% for m in messages %}[{{ loop.index }}]{{ m['content'] }}{% endfor %}",
    "the system text is in the user's turn": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{% if loop.index == 2 and messages[0]['role'] == 'system' %}<<{{ messages[0]['content'] }}>> {% endif %}"
        "{{ m['content'] }} [/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "an answer is refused": "{% for m in messages %}{% if loop.index > 1 %}{{ raise_exception('one question only') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_go_cannot_say_is_refused(tokenizer, name):
    tokenizer.chat_template = REFUSED[name]
    with pytest.raises(UserError, match="cannot be written as an Ollama Modelfile"):
        write_modelfile(tokenizer, "model.gguf", ["Hello"])
