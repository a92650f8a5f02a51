"""Rank, world size and a few collectives of torch.distributed; the device of a process, its type and memory.

Read `Processes`: without torchrun it is one process, for which the same code works.
"""

import datetime
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from config import TrainConfig
from support.cli import PARENT
from support.files import hold, reading

MOST_HOURS = 365 * 24          # that a collective waits, e.g. while one process works alone

Made = TypeVar("Made")


class Processes:
    """The processes that torchrun started, or this one alone.

    Args: hours that a collective waits for the slowest process before it fails.
    Attributes: rank, of this process among all; world, how many there are; local, its rank on its machine.
    """

    def __init__(self, hours: float = MOST_HOURS):
        # Only torchrun's: others set WORLD_SIZE for purposes of their own.
        env = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
        self.rank, self.world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
        self.local = int(env.get("LOCAL_RANK", 0))
        if env:
            threading.Thread(target=end_with_parent, args=[PARENT], daemon=True).start()
        if self.world > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            timeout = datetime.timedelta(hours=hours)
            # torchrun keeps its store when it restarts the processes: the addresses in it are of dead ones.
            store = next(torch.distributed.rendezvous("env://", self.rank, self.world, timeout=timeout))[0]
            store = torch.distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            torch.distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.world,
                                                 timeout=timeout)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints for all."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device that --device asks for, on which songs do not depend on the number of processes.

        Sums on a CPU depend on the number of threads: it is OMP_NUM_THREADS, which torchrun sets, or 1.
        """
        device = pick_device(name, self.local)
        if device.type == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
        return device

    def hold(self, folder: Path) -> None:
        """Keep other runs out of a folder until this one ends. Raises: UserError, on the main process."""
        if self.main:
            hold(folder)
        self.wait()
        hold(folder, main=False)

    def wait(self) -> None:
        """Wait until all processes are here. Not by barrier(), which would allocate memory on a GPU."""
        self.sum(torch.zeros(1))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors, on the CPU."""
        values = values.cpu()
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: object) -> list:
        """The values of all processes, which may be any objects that pickle takes, by rank."""
        values = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def one_first(self, make: Callable[[], Made]) -> Made:
        """Return make(), called on one process of each machine first: it may download what all need."""
        if self.local == 0:
            made = make()
        self.wait()
        return made if self.local == 0 else make()

    def close(self) -> None:
        """End together: destroying a group whose members are gone may hang."""
        self.wait()
        if self.world > 1:
            torch.distributed.destroy_process_group()


def end_with_parent(parent: int) -> None:
    """End this process when torchrun is gone, even if that was killed: nobody would collect its work."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def autocast(device: torch.device, cfg: TrainConfig) -> torch.autocast:
    """Matrix products as --bf16 and --fp16 say."""
    return torch.autocast(device.type, torch.float16 if cfg.fp16 else torch.bfloat16,
                          enabled=cfg.fp16 or cfg.bf16)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that --device asks for; "cuda" is the GPU with the process's local rank.

    Args: name, auto (CUDA, then MPS, then CPU) or a torch device.
    Raises: UserError for another kind of device, or one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    with reading(f"--device {name}"):
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise ValueError("expected auto, cpu, cuda or mps")
        return torch.empty(0, device=name).device


def pick_dtype(name: str, device: torch.device) -> str:
    """The type that --dtype asks for; auto: bfloat16 where the device's arithmetic has it, else what it has.

    A flag of the hardware decides, no stopwatch: a machine always sings the same song.
    """
    if name != "auto":
        return name
    if device.type == "cuda":                    # before Ampere, bfloat16 is emulated
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    has = torch.cpu.get_capabilities()
    native = device.type == "cpu" and (has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bfloat16" if native else "float32"


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has had, in words."""
    units_per_gib = 1024 ** 2 if sys.platform != "darwin" else 1024 ** 3
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib:.2f} GiB of memory at most"
    if device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(device) / 1024 ** 3:.2f} GiB of the GPU's"
    return text
