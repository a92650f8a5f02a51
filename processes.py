"""This process among those that torchrun started: rank, world, and what they say to one another."""

import datetime
import os

import torch
from torch import Tensor

MOST_HOURS = 365 * 24          # that one process may work before the others give it up


class Processes:
    """rank of world, the local one of its machine; alone, 0 of 1."""

    def __init__(self, hours: float = MOST_HOURS):
        started = "TORCHELASTIC_RUN_ID" in os.environ        # others set WORLD_SIZE for purposes of their own
        self.rank, self.world, self.local = (int(os.environ[name]) if started else alone for name, alone in (
            ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        if self.world > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            timeout = datetime.timedelta(hours=hours)
            # torchrun keeps its store when it starts all anew: the addresses in it are of those that died.
            store = next(torch.distributed.rendezvous("env://", self.rank, self.world, timeout=timeout))[0]
            store = torch.distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            torch.distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.world,
                                                 timeout=timeout)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here. Not by barrier(), which would take a GPU where there is one."""
        self.sum(torch.zeros(1))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, on the CPU."""
        values = values.cpu()
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: object) -> list:
        """Every process's value, by rank."""
        values = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """End together: a group whose members are gone may not end."""
        self.wait()
        if self.world > 1:
            torch.distributed.destroy_process_group()
