"""llama.cpp's source, out of the pinned llama-cpp-python archive that the set-up installed from, and its converter.

The archive is the one that `llama-cpp-python` itself was built from, so converter and runtime always match.
"""

import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import cli
from dpo.artifacts import raise_why_unwritten, sha256_of
from dpo.child_process import ends_with_this
from dpo.cli import UserError

CHECKSUM_FILE = Path(__file__).parents[2] / "envs" / "llama-cpp-python.sha256"
CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
FAILED_CALL = re.compile(r"\[Errno (\d+)\] ([^:]*)(?:: '(.+)')?$")  # as Python's OSError ends a program


def find_archive() -> Path:
    """Return the pinned source archive: the set-up's copy, or a fresh download where there is none.

    Raises:
        UserError: the archive cannot be had, or its SHA-256 is not the pinned one.
    """
    digest, name = CHECKSUM_FILE.read_text().split()
    folder = Path(sys.prefix) / "share" / "llama-cpp-python"
    archive = folder / name
    if not archive.exists():
        requirement = name.removesuffix(".tar.gz").replace("llama_cpp_python-", "llama-cpp-python==")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        if subprocess.run([*pip, requirement]).returncode != 0:
            raise UserError(f"{archive} is missing and pip could not download {requirement}; run `make .venv` again")
    if sha256_of(archive) != digest:
        raise UserError(
            f"{archive} does not have the SHA-256 in {CHECKSUM_FILE.name} ({digest}); delete it and run `make .venv`"
        )
    return archive


@contextmanager
def unpacked(*parts: str) -> Iterator[Path]:
    """Yield llama.cpp's source folder, a temporary one.

    Args:
        parts: what to unpack, as beginnings of paths in that folder: files, and folders that end in a slash.
    """
    with TemporaryDirectory() as folder:
        with tarfile.open(find_archive()) as archive:
            for member in archive:
                _, _, inside = member.name.partition("/vendor/llama.cpp/")
                if inside.startswith(parts):
                    archive.extract(member, folder, filter="data")
        yield next(Path(folder).glob("*/vendor/llama.cpp"))


def convert(model: Path, gguf: Path, *options: str) -> None:
    """Run the converter on a Hugging Face folder.

    Args:
        model: Hugging Face folder with weights, config and tokenizer.
        gguf: file to write; the caller stages it.
        options: further options of `convert_hf_to_gguf.py`, for example `--outtype f16` or `--vocab-only`.

    Raises:
        UserError: the converter refused the model; its own last line is quoted.
        OSError, MemoryError: it had no room for the file, or not the memory.
    """
    with unpacked(*CONVERTER_PARTS) as source:
        program = str(source / "convert_hf_to_gguf.py")
        command = [sys.executable, program, str(model), "--outfile", str(gguf), *options]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=ends_with_this()
        )
    if result.returncode == 0:
        return
    last = (result.stdout.strip().splitlines() or ["it said nothing"])[-1]
    # Libraries in Rust say it first, and more after that.
    if result.returncode == -signal.SIGKILL or "MemoryError" in last or cli.NO_MEMORY.search(result.stdout):
        raise MemoryError("llama.cpp's converter got no more")
    if cli.SHORT_WRITE.search(last):
        raise_why_unwritten(gguf, 2 * sum(file.stat().st_size for file in model.iterdir()))
    if found := FAILED_CALL.search(last):
        error = OSError(int(found[1]), found[2], found[3])
        error.add_note(f"while llama.cpp's converter wrote {gguf}")
        raise error
    print(result.stdout)
    raise UserError(f"llama.cpp's converter cannot convert {model}: {last}")
