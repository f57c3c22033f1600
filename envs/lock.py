"""Write the SHA-256 of every file that pip may install: python3 envs/lock.py [--check]

requirements.txt and requirements-cuda.txt are for people, who edit pins and comments there. From these and from what
pip's own index says of each release, this program writes what pip is given, which nobody edits:

    requirements.lock         wheels for every machine
    requirements-source.lock  the packages without wheels, which are built in the environment made so far
    requirements-cuda.lock    wheels for Linux machines with an NVIDIA GPU
    llama-cpp-python.sha256   the archive that install.py builds, and the GGUF tools come from
    dpo.post-deploy.sh        the hashes in it; its pins are edited by hand, as those of dpo.yaml

Run it after a pin was changed, and read what it changed: new hashes of a pin that stayed mean that files were added to
a release, or replaced. --check needs no network; it says whether the files fit the pins, and not whether the index
agrees. torch and torchvision are in no lock: see install_torch in install.py.
"""

import functools
import itertools
import re
import sys

from install import CHECKSUM, CUDA_LOCK, CUDA_PINS, ENVS, LOCK, NEWEST, OLDEST, PINS, SOURCE_LOCK, fail
from pip._internal.commands import create_command
from pip._vendor.packaging import tags, utils
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version

POST_DEPLOY = ENVS / "dpo.post-deploy.sh"
ARCHIVE = "llama-cpp-python"  # checked by its own file, which the workflow reads too
UNHASHED = ("torch", "torchvision")  # install_torch in install.py says why

ENTRY = re.compile(r"^([a-z0-9-]+==[^\\\n]+?)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.MULTILINE)
HEADER = "# Made by envs/lock.py from {}: edit that file, then run `python3 envs/lock.py`.\n"

# All that glibc's versions may be called; pip takes those that the machine has.
GLIBC = [f"manylinux_2_{minor}" for minor in range(5, 100)] + ["manylinux1", "manylinux2010", "manylinux2014"]
LINUX = {machine: [f"{glibc}_{machine}" for glibc in GLIBC] for machine in ("x86_64", "aarch64")}
MACHINES = {("linux", machine): platforms for machine, platforms in LINUX.items()}
MACHINES["darwin", "arm64"] = list(tags.mac_platforms((99, 0), "arm64"))

# Whose pins are in which locks, and for which systems.
LOCKS = [(PINS, (LOCK, SOURCE_LOCK), ("linux", "darwin")), (CUDA_PINS, (CUDA_LOCK,), ("linux",))]


def pins_of(path):
    """Return the pins of a file for people, without their comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return sorted(filter(None, lines))


def name_of(pin):
    """Return a pin's package."""
    return pin.partition("==")[0]


def entries_of(text):
    """Return (pin, hashes) of each entry in a lock or script."""
    return [(pin, re.findall("[0-9a-f]{64}", hashes)) for pin, hashes in ENTRY.findall(text)]


def entry(pin, hashes):
    """Return a pin as pip reads it with its hashes."""
    return " \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in hashes)])


@functools.cache
def takes(minor, machine):
    """Return the wheel tags that a Python takes on a machine, by pip's own rules."""
    version, own, platforms = (3, minor), f"cp3{minor}", MACHINES[machine]
    return {*tags.cpython_tags(version, [own], platforms), *tags.compatible_tags(version, own, platforms)}


def targets_of(pin, systems):
    """Return, by name, the wheel tags of each supported Python on each machine that the pin is for."""
    marker = Requirement(pin).marker
    targets = {}
    for minor, (system, machine) in itertools.product(range(OLDEST[1], NEWEST[1] + 1), MACHINES):
        here = {"python_version": f"3.{minor}", "sys_platform": system, "platform_machine": machine}
        if system in systems and (marker is None or marker.evaluate(here)):
            targets[f"Python 3.{minor} on {system} {machine}"] = takes(minor, (system, machine))
    return targets


def fitting(pin, files, systems):
    """Return those of a release's files that are wheels for the supported machines, or its source if it has none."""
    tags_of = {at: utils.parse_wheel_filename(file["filename"])[3] for at, file in enumerate(files) if is_wheel(file)}
    targets = targets_of(pin, systems)
    without = [target for target, good in targets.items() if not any(good & has for has in tags_of.values())]
    if 0 < len(without) < len(targets):
        fail(f"{pin} has no wheel for {', '.join(without)}; pin a release that has")
    if without:
        return [file for file in files if not is_wheel(file)]
    return [files[at] for at, has in tags_of.items() if any(good & has for good in targets.values())]


def is_wheel(file):
    """Tell a wheel from a source archive."""
    return file["filename"].endswith(".whl")


def digests(files):
    """Return the SHA-256 of the files, each once and in order."""
    return sorted({file["hashes"]["sha256"] for file in files})


def release(filename):
    """Return the version in a file's name, or None for what is neither wheel nor source."""
    try:
        parse = utils.parse_wheel_filename if filename.endswith(".whl") else utils.parse_sdist_filename
        return parse(filename)[1]
    except ValueError:
        return None


def ask_index():
    """Return a function that lists a pin's files, with the index, certificates and proxy that pip is set up with."""
    command = create_command("install")
    options, _ = command.parse_args([])
    if options.no_index:
        fail("pip is set up to use no index, and the hashes come from there")
    session = command._build_session(options)

    def files_of(pin):
        page = f"{options.index_url.rstrip('/')}/{name_of(pin)}/"
        try:
            answer = session.get(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
        except OSError as error:
            fail(f"{pin}: the index cannot be asked: {error}")
        if not answer.ok:
            fail(f"{pin}: the index answered {answer.status_code} {answer.reason}")
        if "json" not in answer.headers.get("Content-Type", ""):
            fail(f"{pin}: the index does not list its files as JSON, as PEP 691 has it; take one that does")
        version = Version(pin.partition("==")[2].split()[0])
        files = [file for file in answer.json()["files"] if release(file["filename"]) == version]
        if any("sha256" not in file["hashes"] for file in files):
            fail(f"{pin}: the index gives no SHA-256 for some files")
        if any(file.get("yanked") for file in files):
            print(f"{pin} was withdrawn by its authors", file=sys.stderr)
        return files

    return files_of


def made(files_of):
    """Return the text of every file that this program writes."""
    texts, locked = {}, {lock: {} for _, locks, _ in LOCKS for lock in locks}
    for pins, locks, systems in LOCKS:
        for pin in pins_of(pins):
            if name_of(pin) in UNHASHED:
                continue
            files = fitting(pin, files_of(pin), systems)
            # Wheels are in the first lock, what has to be built in the second, where there is one.
            place = locks[:1] if files and is_wheel(files[0]) else locks[1:]
            if not files or not place:
                fail(f"{pin} has no file that install.py could install; pin a release that has")
            if name_of(pin) == ARCHIVE:
                texts[CHECKSUM] = f"{files[0]['hashes']['sha256']}  {files[0]['filename']}\n"
            else:
                locked[place[0]][pin] = digests(files)
        for lock in locks:
            texts[lock] = HEADER.format(pins.name) + "".join(f"{entry(*one)}\n" for one in locked[lock].items())
    known = archive(texts[CHECKSUM]) | {pin: hashes for entries in locked.values() for pin, hashes in entries.items()}
    # A pin that no lock has is left without hashes here, and --check tells.
    texts[POST_DEPLOY] = ENTRY.sub(lambda found: entry(found[1], known.get(found[1], [])), POST_DEPLOY.read_text())
    return texts


def archive(checksum):
    """Return the pin and the hash of the archive that a checksum file names."""
    digest, name = checksum.split()
    return {f"{ARCHIVE}=={name.removesuffix('.tar.gz').rpartition('-')[2]}": [digest]}


def problems():
    """Yield a line on each way in which the written files do not fit the pins."""
    known = archive(CHECKSUM.read_text())
    if known.keys().isdisjoint(pins_of(PINS)):
        yield f"{CHECKSUM.name} is not of the version in {PINS.name}"
    for pins, locks, _ in LOCKS:
        wanted = [pin for pin in pins_of(pins) if name_of(pin) not in (*UNHASHED, ARCHIVE)]
        found = []
        for lock in locks:
            text = lock.read_text()
            rest = ENTRY.sub("", text).replace(HEADER.format(pins.name), "").split("\n")
            yield from (f"{lock.name}: cannot read `{line}`" for line in rest if line)
            for pin, hashes in entries_of(text):
                found.append(pin)
                known[pin] = hashes
                if not hashes or hashes != sorted(set(hashes)):
                    yield f"{lock.name}: {pin} has not its hashes, each once and in order"
        for pin in sorted({*wanted, *found}):
            if wanted.count(pin) != found.count(pin):
                where = " and ".join(lock.name for lock in locks)
                yield f"{pin} is {wanted.count(pin)} times in {pins.name}, and {found.count(pin)} times in {where}"
    for pin, hashes in entries_of(POST_DEPLOY.read_text()):
        if not hashes or hashes != known.get(pin):
            yield f"{POST_DEPLOY.name}: {pin} has not the hashes of the lock"


def main(arguments):
    """Write the files, or only check them."""
    if arguments == ["--check"]:
        found = list(problems())
        if found:
            fail("\n".join([*found, "to mend this: python3 envs/lock.py"]))
    elif arguments:
        fail(__doc__.splitlines()[0])
    else:
        for path, text in made(ask_index()).items():
            # One that stays as it is keeps its time, by which make and Snakemake tell what to do again.
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                print(f"wrote {path.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
