"""llama.cpp's own programs, compiled when one is first needed, against the libraries that llama-cpp-python installed.

They come from the same pinned source archive as those libraries. envs/llama_cpp_tools/CMakeLists.txt says how they are
linked, which takes minutes where building all of llama.cpp takes ten.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import llama_cpp_source
from dpo.artifacts import staged_file
from dpo.child_process import ends_with_this
from dpo.cli import UserError

RECIPE = Path(__file__).parents[2] / "envs" / "llama_cpp_tools" / "CMakeLists.txt"
SOURCE_PARTS = ("cmake/", "common/", "scripts/ui-assets.cmake", "src/", "tools/", "vendor/")
# Each program, and how long compiling it takes two cores.
TOOLS = {
    "llama-imatrix": "20 seconds",
    "llama-perplexity": "20 seconds",
    "llama-quantize": "20 seconds",
    "llama-cli": "2 to 4 minutes",
}
QUOTED = 15  # lines of a failed build


def find_tool(name: str) -> Path:
    """Return the path of one of llama.cpp's programs, compiled now if this is its first use; it runs from any folder.

    Args:
        name: a key of `TOOLS`.

    Raises:
        UserError: it could not be compiled; the compiler's last lines are quoted.
    """
    # A folder for each archive and recipe, so that a program never outlives the libraries that it was compiled against.
    made_from = llama_cpp_source.CHECKSUM_FILE.read_bytes() + RECIPE.read_bytes()
    digest = hashlib.sha256(made_from).hexdigest()[:12]
    program = Path(sys.prefix) / "share" / "llama-cpp-python" / "bin" / digest / name
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    with open(program.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():  # else another process compiled it while this one waited
            print(f"compiling llama.cpp's {name}, this once: {TOOLS[name]} on two cores", flush=True)
            with staged_file(program) as partial:
                compile_tool(name, partial)
    return program


def compile_tool(name: str, program: Path) -> None:
    """Compile one of llama.cpp's programs in a temporary folder and copy it to `program`."""
    cmake = [sys.executable, "-m", "cmake"]
    libraries = Path(importlib.util.find_spec("llama_cpp").origin).parents[1]
    with llama_cpp_source.unpacked(*SOURCE_PARTS) as source, TemporaryDirectory() as build:
        configure = ["-S", str(RECIPE.parent), "-B", build, "-G", "Unix Makefiles"]
        run_step(name, [*cmake, *configure, f"-DLLAMA_CPP={source}", f"-DCMAKE_PREFIX_PATH={libraries}"])
        run_step(name, [*cmake, "--build", build, "--target", name, "--parallel", str(usable_cpus())])
        shutil.copy(Path(build) / "bin" / name, program)


def usable_cpus() -> int:
    """Return how many CPUs this process may use; macOS cannot tell, there it is all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_step(name: str, command: list[str]) -> None:
    """Run one step of compiling a program, without a word unless it fails."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    result = subprocess.run(command, **output, preexec_fn=ends_with_this())
    if result.returncode != 0:
        last = "\n".join(result.stdout.strip().splitlines()[-QUOTED:])
        raise UserError(f"llama.cpp's {name} could not be compiled; `make .venv` completes what it needs:\n{last}")
