"""A Slurm cluster of one node on this machine: the real munged, slurmctld and slurmd, on loopback, in one folder."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr")
CPUS, MEGABYTES = 3, 60_000  # more than there may be: Slurm takes our word for it

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MinJobAge=3600
KillWait=3
JobRequeue=0
ReturnToService=2
SlurmdTimeout=0
MessageTimeout=20
SchedulerParameters=batch_sched_delay=0,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE State=UP
"""

# In its jobs the executor takes SLURM_CONF out of the environment, and PATH is what gets through.
WRAPPER = """#!/bin/sh
export SLURM_CONF={folder}/slurm.conf
exec {program} "$@"
"""


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    absent = [name for name in (*DAEMONS, *CLIENTS, "mungekey") if not find(name)]
    return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge" if absent else None


def find(program: str) -> str | None:
    """Return the path of a program; a user's PATH often lacks those of administrators."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def slurm_cluster():
    """Start a cluster and yield it; end it with all its jobs."""
    # Not pytest's folder: a socket's path must be short, and munge wants it where everybody may enter.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        os.chmod(folder, 0o755)
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


class Cluster:
    """A cluster; `environment` is that of whoever uses it."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []
        self.environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start the daemons, and wait until the node takes jobs."""
        folder = self.folder
        for name in ("bin", "state", "spool"):
            (folder / name).mkdir()
        ctld, slurmd = free_ports(2)
        values = {"folder": folder, "user": getpass.getuser(), "ctld": ctld, "slurmd": slurmd}
        (folder / "slurm.conf").write_text(CONFIG.format(**values, cpus=CPUS, megabytes=MEGABYTES))
        for name in CLIENTS:
            (folder / "bin" / name).write_text(WRAPPER.format(folder=folder, program=find(name)))
            (folder / "bin" / name).chmod(0o755)
        key, files = folder / "munge.key", [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        subprocess.run([find("mungekey"), "--create", f"--keyfile={key}", "--bits=1024"], check=True)
        self.daemon("munged", "--foreground", f"--socket={folder}/munge.sock", f"--key-file={key}", *files)
        self.wait_until(lambda: (folder / "munge.sock").exists())
        self.daemon("slurmctld", "-D", "-c", "-f", folder / "slurm.conf")
        self.daemon("slurmd", "-D", "-c", "-N", "localhost", "-f", folder / "slurm.conf")
        self.wait_until(lambda: self.ask("sinfo", "--noheader", "--format=%T").strip() == "idle")

    def daemon(self, program: str, *options) -> None:
        """Start a daemon that stays in the foreground."""
        with open(self.folder / f"{program}.out", "w") as output:
            command = [find(program), *map(str, options)]
            self.started.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))

    def wait_until(self, ready) -> None:
        """Wait until something is so, or fail with what the daemons printed."""
        deadline = time.monotonic() + 60
        while not ready():
            printed = "\n".join(file.read_text() for file in self.folder.glob("*.out"))
            assert time.monotonic() < deadline, f"Slurm does not start:\n{printed}"
            time.sleep(0.2)

    def ask(self, program: str, *options: str) -> str:
        """Return what one of Slurm's commands prints; nothing where it fails."""
        command = [self.folder / "bin" / program, *options]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True).stdout

    def jobs(self) -> list[dict]:
        """Return all jobs since the start, in the order of their numbers: `id`, `state`, `what`, `mb`, `minutes`."""
        listed = self.ask("squeue", "--noheader", "--states=all", "--format=%A|%T|%k|%m|%l")
        rows = [line.strip().split("|") for line in listed.splitlines()]
        keys = ("id", "state", "what", "memory", "limit")
        return sorted((dict(zip(keys, row, strict=True)) for row in rows), key=lambda job: int(job["id"]))

    def stop(self) -> None:
        """End all jobs, then the daemons; those of a step ignore SIGTERM."""
        if len(self.started) == len(DAEMONS):
            self.ask("scancel", f"--user={getpass.getuser()}")
            deadline = time.monotonic() + 20
            while self.ask("squeue", "--noheader").strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
