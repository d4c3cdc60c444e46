"""Which process holds what: the rows of a batch along one side of a grid, latents along the other.

                  latents 0, 2, ...   latents 1, 3, ...
    first rows        rank 0              rank 1
    other rows        rank 2              rank 3

Processes in a column hold the same weights and add up their gradients; processes in a row see the
same vectors and add up what their latents write. One column is data-parallel training, one row a
dictionary that is too wide for one device.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from unweave.activations.workers import available_cores
from unweave.errors import UserError
from unweave.training.parallel.group import Group

PATIENCE = timedelta(days=1)
"""How long one process waits for another. What dies is noticed at once; this is for rank 0, which
measures and writes while the others have nothing to do."""


class Grid(NamedTuple):
    """This process's place among the others."""

    rows: Group
    """Those with the same latents, each with a share of the rows."""
    latents: Group
    """Those with the same rows, each with a share of the latents."""
    everyone: Group
    """All of them."""
    device: torch.device
    """Where this process computes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.everyone.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is anybody else."""
        return self.everyone.size > 1

    @property
    def sent(self) -> int:
        """Bytes that left this process so far (see `Group.sent`)."""
        return self.rows.sent + self.latents.sent + self.everyone.sent


ALONE = Grid(Group(), Group(), Group(), torch.device("cpu"))
"""One process with everything."""


def launched() -> int:
    """How many processes `torchrun` has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return launched() == 1 or os.environ["RANK"] == "0"


def threads_each() -> int | None:
    """Threads for each of this machine's processes, so that they do not stand in each other's way;
    None where there is one process, which may take all."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1
    return max(1, available_cores() // here) if here > 1 else None


@contextmanager
def together(shards: int = 1) -> Iterator[Grid]:
    """Join the processes that `torchrun` started, as a grid of `shards` columns.

    Tensors on a CUDA device travel by NCCL, each process on the device of its local rank; those in
    memory by gloo.

    Raises:
        UserError: the processes do not make a grid of so many columns.
    """
    world = launched()
    if shards < 1 or world % shards:
        raise UserError(
            f"{shards} shards do not divide the {world} process{'es' * (world > 1)} of this run: "
            "start it with torchrun --nproc-per-node and a multiple of --shards"
        )
    if world == 1:
        yield ALONE
        return
    device = _own_device()
    if not dist.is_initialized():  # once and for all: a store cannot be met at twice
        _meet(device)
        atexit.register(dist.destroy_process_group)
    try:
        yield grid_of(world, shards, device)
    except BaseException:
        # No farewell: the others may be waiting, and end when they see this process gone.
        atexit.unregister(dist.destroy_process_group)
        raise


def grid_of(world: int, shards: int, device: torch.device) -> Grid:
    """This process's place in a grid of `shards` columns, once the processes have met."""
    sides = world // shards, shards
    mesh = init_device_mesh(device.type, sides, mesh_dim_names=("rows", "latents"))
    rows, latents = (Group(mesh.get_group(side)) for side in ("rows", "latents"))
    return Grid(rows, latents, Group(dist.group.WORLD), device)


def _meet(device: torch.device) -> None:
    """Connect all processes with one another."""
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    # torchrun keeps its store when it starts all again, and with it where the dead could be
    # reached; whoever comes first would look for them there.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=PATIENCE,
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
    )


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", own % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
