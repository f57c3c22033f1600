"""Training in several processes of one machine, started by `accelerate launch`: one a GPU, or a share of a CPU's cores.

The process that the user started launches the others, which run the same program, and waits for them. It alone says
what went wrong, and none of them outlives it.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import cli
from dpo.child_process import die_with_parent
from dpo.cli import UserError
from dpo.less_memory import LESS_MEMORY

# Environment variables of a launched process: who launched it, and the folder for what it has to say of its end.
LAUNCHER, TOLD = "TRAIN_DPO_LAUNCHER", "TRAIN_DPO_TOLD"
LAUNCHED = LAUNCHER in os.environ
NUMBER = int(os.environ["RANK"]) if LAUNCHED else 0  # of this process, from 0
COUNT = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1  # of all of them
# A process that waits for one that died fails too. So long it leaves the word to that one.
PATIENCE = 60  # seconds


def launch(count: int, fsdp: bool, options: list[str]) -> None:
    """Run this program in several processes until all have ended well.

    Args:
        count: how many.
        fsdp: whether they divide the model among them.
        options: that this program is given besides its own.

    Raises:
        UserError: there are too few GPUs, or one of them ended, for a reason of its own or by a signal.
        MemoryError: one of them ran out of memory.
        SystemExit: one of them failed, and has shown a traceback.
        KeyboardInterrupt: Ctrl-C; they have ended.
    """
    import torch
    from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    check_gpus(torch.cuda.device_count(), count, fsdp)
    # Every option that a user's own `accelerate config` could set otherwise; `launch_command` would read that.
    launcher = launch_command_parser().parse_args(
        [
            *("--multi_gpu", f"--num_processes={count}", "--num_machines=1", "--main_process_port=0"),
            *("--mixed_precision=no", "--dynamo_backend=no", f"--log_dir={os.devnull}"),
            # On the cores that the job has, which Snakemake says in OMP_NUM_THREADS.
            f"--num_cpu_threads_per_process={max(1, torch.get_num_threads() // count)}",
            *sys.argv,
            *options,
        ]
    )
    launcher.standalone, launcher.local_addr = True, "127.0.0.1"  # on a port that the system chooses
    os.environ[LAUNCHER] = str(os.getpid())
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing need be listening to the network
    logging.disable()  # what is to be said of a process's end is said below
    stopped, failures = None, {}
    with TemporaryDirectory() as folder:
        os.environ[TOLD] = folder
        try:
            multi_gpu_launcher(launcher)
        except SignalException as received:
            stopped = received.sigval
        except ChildFailedError as ended:
            failures = {number: failure.exitcode for number, failure in ended.failures.items()}
        told = {int(file.stem): json.loads(file.read_text()) for file in Path(folder).glob("*.json")}
    logging.disable(logging.NOTSET)
    del os.environ[LAUNCHER], os.environ[TOLD]
    if set(failures.values()) == {-signal.SIGTERM}:
        stopped = signal.SIGTERM  # a time limit's, which reached them first
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped:
        signal.signal(stopped, signal.SIG_DFL)
        os.kill(os.getpid(), stopped)
    if failures:
        explain(failures, told, count)


def check_gpus(gpus: int, count: int, fsdp: bool) -> None:
    """Raise `UserError` where a machine has too few GPUs."""
    if 0 < gpus < count:
        raise UserError(f"training.processes is {count}, one a GPU, but GPUs are {gpus}; set it to {gpus} or fewer")
    if fsdp and not gpus:
        raise UserError("training.fsdp needs GPUs: accelerate divides no model on a CPU; set it to false")


def explain(failures: dict[int, int], told: dict[int, dict], count: int) -> None:
    """Raise what is to be said of processes that failed.

    Args:
        failures: how each of them ended, as `subprocess` has it, by number. One that the launcher ended is among them.
        told: what each had to say, by number: `text`, and whether a person can do something about it (`explained`).
        count: of all processes.
    """
    # The signal that ended one may have been the reason for what others say, but not the other way round.
    number, status = min(failures.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[1] >= 0, item[0]))
    which = f"process {number + 1} of {count}"
    less = f"in config.yaml lower training.processes, or {LESS_MEMORY['train_dpo']}"
    if status == -signal.SIGKILL:
        raise UserError(f"{which} was killed (SIGKILL); if nobody did it, the system was out of memory: {less}")
    if status < 0:
        raise UserError(
            f"{which} crashed ({signal.Signals(-status).name}), as native code does on a damaged input or for want of "
            f"memory; see above. For less memory: {less}"
        )
    if status == cli.OUT_OF_MEMORY:
        raise MemoryError(f"{which}: {told[number]['text'] if number in told else 'while it started'}")
    if number not in told:
        raise UserError(f"{which} ended with exit status {status}; see above")
    if told[number]["explained"]:
        raise UserError(told[number]["text"])
    print(f"{which} failed:\n{told[number]['text']}", file=sys.stderr)
    raise SystemExit(status)


def run(work: Callable[[], None]) -> None:
    """Do what a launched process has to do, and leave it to the one that launched it to say how that ended."""
    die_with_parent(int(os.environ[LAUNCHER]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # also while it waits for another, where Python is not asked
    try:
        work()
    except Exception as error:
        if is_lost(error):
            time.sleep(PATIENCE)
        message, status = cli.explain(error) or (None, 1)
        said = {"text": message or traceback.format_exc(), "explained": message is not None}
        if status == cli.OUT_OF_MEMORY:
            said["text"] = str(error).strip().partition("\n")[0] or type(error).__name__
        try:
            Path(os.environ[TOLD], f"{NUMBER}.json").write_text(json.dumps(said))
        except OSError:
            print(f"error: {said['text']}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(status)  # at once, whatever other threads wait for


def is_lost(error: Exception) -> bool:
    """Tell whether an error means that another process can no longer be reached."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def be_quiet() -> None:
    """Leave output, progress bars and warnings to the first process; to be called before transformers is imported."""
    if NUMBER:
        os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stand_alone() -> None:
    """Have transformers take this process for the only one, with one GPU; to be called before it uses that.

    Where there are several GPUs, it would spread each batch over all of them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(number) for number in range(COUNT)]
    if len(names) > NUMBER:  # else there is none, and this runs on a CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = names[NUMBER]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def stand_together() -> None:
    """Have transformers see all processes, each with a GPU of its own or all on the CPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(NUMBER)
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
