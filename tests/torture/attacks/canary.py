"""How an attack is tried: a canary that its payload would set off, and what came of it.

Each attack is a function of an empty folder and the path of a good small model. Its canary is a file that the payload
would make, a request to a server on this machine, or a secret where it must not be. Where the same bytes do fire in the
hands of a careless reader, the attack shows that first, so that none of them is a blank.
"""

import atexit
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from hub_server import environment as hub_environment
from torture.outcome import HARMLESS, REFUSED, SILENT, Tried

PROJECT = Path(__file__).parents[3]
SECRET = "canary-6b1f-secret-of-this-machine"
NOWHERE = "http://127.0.0.1:9"
SECONDS = 240  # more is a hang
SCRATCH = Path(mkdtemp(prefix="attacks-"))  # for what several attacks share
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

Attack = Callable[[Path, Path], Tried]
ATTACKS: dict[str, Attack] = {}


class Blank(AssertionError):
    """An attack that would not have hurt a careless reader either."""


def attack(fault: str, stage: str) -> Callable[[Callable[[Path, Path], tuple[str, str]]], Attack]:
    """Register a function that returns (outcome, detail) as an attack; `stage` is the program attacked."""

    def register(function: Callable[[Path, Path], tuple[str, str]]) -> Attack:
        def tried(folder: Path, model: Path) -> Tried:
            return Tried(fault, stage, *function(folder, model))

        name = f"{stage}: {fault}"
        assert name not in ATTACKS, name
        ATTACKS[name] = tried
        return tried

    return register


class Pickled:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


def carelessly(canary: Path, code: str, *arguments: object, **environment: str) -> None:
    """Show that the canary is alive: run Python code as a careless reader would, see it fire, and put it back."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = hub_environment(SCRATCH / "careless", NOWHERE) | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    if not canary.exists():
        raise Blank(f"nothing fired: {done.stderr[-1500:]}")
    canary.unlink()


def limit_memory(gigabytes: float) -> Callable[[], None]:
    """Return what to run in a new process so that it cannot take all of this machine's memory."""
    most = int(gigabytes * 2**30)
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(*command: object, memory: float = 24, answer: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run one of the project's programs.

    Args:
        command: the program's name without `.py`, and its arguments.
        memory: address space that it gets, in GiB.
        answer: what it finds on its standard input, as from somebody at a terminal.
        environment: variables beside those of this process.
    """
    program, *arguments = map(str, command)
    try:
        return subprocess.run(
            [sys.executable, f"scripts/{program}.py", *arguments],
            cwd=PROJECT,
            env=hub_environment(SCRATCH / "huggingface", NOWHERE) | environment,
            input=answer,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            preexec_fn=limit_memory(memory),
        )
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 0, "", f"it never ended: stopped after {SECONDS} seconds")


def outcome(
    result: subprocess.CompletedProcess, published: Path, *words: str, canary: Path | None = None
) -> tuple[str, str]:
    """Tell a refusal from a harmless end, and both from harm.

    Args:
        result: of the program.
        published: where it writes; nothing may be there when it fails.
        words: what the message must name, each, where only a refusal will do.
        canary: a file that must not be there.
    """
    said = result.stdout + result.stderr
    if canary and canary.exists():
        return SILENT, "the payload ran"
    if SECRET in said or SECRET in everything_below(published):
        return SILENT, "the secret came out"
    if "Traceback (most recent call last)" in said or "it never ended" in said:
        return SILENT, said[-600:]
    if "\x1b" in said:
        return SILENT, "an escape sequence reached the terminal"
    if result.returncode == 0 and words:
        return SILENT, "it was not refused"
    if result.returncode == 0:
        return HARMLESS, (said.strip().splitlines() or [""])[-1][:300]
    messages = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if len(messages) != 1:
        return SILENT, f"status {result.returncode}, {len(messages)} messages: {said[-600:]}"
    if missing := [word for word in words if word not in result.stderr.partition("error: ")[2]]:
        return SILENT, f"the message does not name {missing}: {messages[0]}"
    if everything_below(published):
        return SILENT, f"refused, but {published} is there"
    return REFUSED, messages[0][:300]


def everything_below(path: Path) -> str:
    """Return the bytes of a file, or of all files in a folder, as text; "" where there is none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return "\n".join(file.read_bytes().decode("latin-1") for file in files)


def secret_file(folder: Path, text: str = SECRET) -> Path:
    """Write a file that lies beside what a program is given, and is none of its business."""
    file = folder / "private" / "secret.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + "\n")
    return file
