"""Make or complete the virtual environment of this project: python3 envs/install.py VENV_DIR

Safe to run again: what is installed already is kept, so an interrupted set-up goes on where it stopped. What is
downloaded must have the SHA-256 in the locks, which envs/lock.py writes; what is kept is not checked again.
Standard library only, and no syntax newer than Python 3.6: an old Python must get far enough to be told so.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENVS = Path(__file__).resolve().parent
PINS = ENVS / "requirements.txt"
LOCK = ENVS / "requirements.lock"
SOURCE_LOCK = ENVS / "requirements-source.lock"
CUDA_PINS = ENVS / "requirements-cuda.txt"
CUDA_LOCK = ENVS / "requirements-cuda.lock"
CHECKSUM = ENVS / "llama-cpp-python.sha256"

OLDEST, NEWEST = (3, 11), (3, 13)
COMPILERS = ("c++", "g++", "clang++")
CPU_GB, GPU_GB = 3.5, 12  # installed on Linux: 2.5 GB with torch's CPU build, and the files of the llama.cpp build
# Only libllama is used. Without the rest of llama.cpp the build takes two thirds of the time.
CMAKE_ARGS = " ".join("-D{}=OFF".format(part) for part in ("LLAVA_BUILD", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES"))
CMAKE_ARGS += " -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF"


def fail(message):
    """Stop with one line on stderr and exit status 1."""
    sys.stdout.flush()
    sys.exit(message)


def say(message):
    """Print one line now, also into a pipe."""
    print(message, flush=True)


def check_python(version, program):
    """Fail unless the lock has wheels for this Python version."""
    if not OLDEST <= version[:2] <= NEWEST:
        fail(
            "Python 3.11, 3.12 or 3.13 is needed; this is {} ({}). "
            "Install one and run `make PYTHON=/path/to/python3.12`".format(".".join(map(str, version[:3])), program)
        )


def check_venv_module():
    """Fail where Python came without its venv module, as on Debian and Ubuntu."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        fail(
            "{} has no `{}` module, so it cannot make a virtual environment. On Debian and Ubuntu: "
            "`apt install python3-venv`".format(sys.executable, error.name)
        )


def check_compiler():
    """Fail where nothing can compile llama.cpp, which would come out only after gigabytes of downloads."""
    named = shlex.split(os.environ.get("CXX", ""))
    if not any(shutil.which(compiler) for compiler in named[:1] or COMPILERS):
        fail(
            "no C++ compiler found (looked for {}); llama-cpp-python is built from source. On Debian and Ubuntu: "
            "`apt install g++`, on macOS: `xcode-select --install`".format(", ".join(named[:1] or COMPILERS))
        )


def check_disk(folder, needed_gb):
    """Fail where the folder's file system cannot take what is not there yet."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(str(existing)).free / 1e9
    files = (os.path.join(at, name) for at, _, names in os.walk(str(folder)) for name in names)
    there = sum(os.lstat(file).st_size for file in files) / 1e9
    if free + there < needed_gb:
        fail(
            "about {:.1f} GB of free disk are needed at {}, {:.1f} GB are there; make room, or clone the project "
            "on a larger disk".format(needed_gb - there, existing, free)
        )


def has_nvidia_gpu():
    """Tell whether nvidia-smi lists a GPU; it can be installed without one."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return listed.returncode == 0 and listed.stdout.startswith(b"GPU ")


def pinned(package, pins=PINS):
    """Return the version that a package is pinned to."""
    for line in pins.read_text().splitlines():
        name, _, rest = line.partition("==")
        if name == package:
            return rest.split()[0]
    raise LookupError(package)


def sha256_of(path):
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def run(step, command, **environment):
    """Run one command of a step; what it prints as an error stays visible."""
    # A user's `pip config set global.user true` would make pip refuse to install into a virtual environment.
    environment = dict(os.environ, PIP_USER="0", **environment)
    other_file = False
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE) as process:
        for line in process.stderr:  # passed on as it comes; read, since pip's exit status is the same for all errors
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
            other_file = other_file or b"DO NOT MATCH THE HASHES" in line
    if other_file:
        fail(
            "set-up stopped: {} failed, because the index served another file than the one that is locked, see above. "
            "It was not installed. If a second try says the same, do not use that index".format(step)
        )
    if process.returncode != 0:
        fail("set-up stopped: {} failed, see above. Run the same command again to go on from here".format(step))


def pip(python, *arguments):
    """Return a pip command that prints warnings and errors only."""
    return [python, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]


def make_venv(folder):
    """Make the virtual environment unless its pip works already, and return its Python."""
    python = folder / "bin" / "python"
    probe = "import sys, pip; print(*sys.version_info[:3])"
    works = python.exists() and subprocess.run([str(python), "-c", probe], stdout=subprocess.PIPE)
    if works and works.returncode == 0:
        version = tuple(map(int, works.stdout.split()))
        if not OLDEST <= version[:2] <= NEWEST:
            fail("{} holds Python {}.{}.{}; delete this folder and run again".format(folder, *version))
    else:
        say("making a virtual environment in {}".format(folder))
        run("making the virtual environment", [sys.executable, "-m", "venv", folder])
    return python


def install_locked(python, lock, *options):
    """Install a lock: exactly these files, and without dependencies, as on a CPU unsloth's are not needed."""
    say("installing {}".format(lock.name))
    command = pip(python, "install", "--require-hashes", "--no-deps", *options, "-r", lock)
    run("installing {}".format(lock.name), command)


def install_locks(python, gpu):
    """Install all but torch, torchvision and llama-cpp-python; last what has no wheel, since wheels build it.

    Left to itself pip would download what a build asks for, in any version and unchecked.
    """
    install_locked(python, LOCK, "--only-binary", ":all:")
    if gpu:
        install_locked(python, CUDA_LOCK, "--only-binary", ":all:")
    install_locked(python, SOURCE_LOCK, "--no-build-isolation")


def install_torch(python, gpu):
    """Install torch and the CUDA libraries that its Linux builds load; all else that it needs comes from the locks.

    The only step without hashes. Under one version every index has other builds of torch, for a CPU or for CUDA, and
    which CUDA libraries belong to one stands in the build itself. Torchvision must be from the same index: it refuses
    a torch for another CUDA. Source, whose code pip would run, is never taken.
    """
    wanted = ["torch==" + pinned("torch")]
    if gpu:
        wanted.append("torchvision==" + pinned("torchvision", CUDA_PINS))
    say("installing {} and the libraries that it brings".format(" and ".join(wanted)))
    # unsloth lacks what only a GPU needs, and pip would call it an error.
    options = ["--only-binary", ":all:", "--no-warn-conflicts", "-c", PINS]
    run("installing torch", pip(python, "install", *options, *wanted))


def fetch_llama_cpp(python, folder):
    """Return the pinned llama-cpp-python source archive, kept where scripts/dpo/llama_cpp_source.py looks for it."""
    digest, name = CHECKSUM.read_text().split()
    archive = folder / "share" / "llama-cpp-python" / name
    if archive.exists() and sha256_of(archive) == digest:
        return archive
    requirement = "llama-cpp-python==" + pinned("llama-cpp-python")
    say("downloading the source of {}".format(requirement))
    if archive.exists():
        archive.unlink()  # pip would keep a broken file of this name
    options = ["--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation", "--dest", archive.parent]
    with tempfile.TemporaryDirectory() as scratch:
        # pip takes hashes from a file only. It must have this one: it runs what it downloads, to learn its metadata.
        lock = Path(scratch) / "llama-cpp-python.lock"
        lock.write_text("{} --hash=sha256:{}\n".format(requirement, digest))
        run("downloading llama-cpp-python", pip(python, "download", *options, "--require-hashes", "-r", lock))
    if not archive.exists() or sha256_of(archive) != digest:
        fail("{} has not come with the SHA-256 in {}; run again, or ask who changed it".format(archive, CHECKSUM))
    return archive


def installed(python, package):
    """Return the version of a package in the virtual environment, or an empty string."""
    probe = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    result = subprocess.run([str(python), "-c", probe, package], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return result.stdout.decode().strip()


def build_llama_cpp(python, archive):
    """Build llama-cpp-python from the archive, unless this version is there."""
    if installed(python, "llama-cpp-python") == pinned("llama-cpp-python"):
        return
    say("building llama-cpp-python from source: about 7 minutes on two cores, no output until it is done")
    # CMake lets the last of two equal options win, so that the user's own can undo ours.
    options = " ".join([CMAKE_ARGS, os.environ.get("CMAKE_ARGS", "")]).strip()
    command = pip(python, "install", "--no-deps", "--no-build-isolation", archive)
    run("building llama-cpp-python", command, CMAKE_ARGS=options)


def main(folder):
    """Check the machine before anything is downloaded, then install step by step; the stamp comes last."""
    check_python(sys.version_info, sys.executable)
    check_venv_module()
    check_compiler()
    gpu = has_nvidia_gpu()
    check_disk(folder, GPU_GB if gpu else CPU_GB)

    start = time.time()
    stamp = folder / ".installed"
    if stamp.exists():
        stamp.unlink()  # from here on the environment is neither the old one nor the new one
    python = make_venv(folder)
    install_locks(python, gpu)
    install_torch(python, gpu)
    archive = fetch_llama_cpp(python, folder)
    build_llama_cpp(python, archive)
    say("importing torch, trl, llama_cpp and snakemake")
    run("importing what was installed", [python, "-c", "import torch, trl, llama_cpp, snakemake"])
    stamp.write_text(sha256_of(LOCK) + "\n")
    say("set-up done in {} min {} s".format(*divmod(round(time.time() - start), 60)))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        fail(__doc__.splitlines()[0])
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        fail("set-up interrupted; run the same command again to go on from here")
