"""Trainings with DistributedDataParallel, their ranks forked from one process: `python -m tests.training.ddp_run RUNS`.

RUNS is JSON, one after the other: [ranks, folder, batches, [who, when]]. A run goes on where the folder's checkpoint stands, which the
first rank replaces after every batch. who: the rank, or all, killed at batch `when` before its gradients are given away; or what
the second rank does wrong, whereupon each rank writes down its error. Each rank that
ends writes down where its cache is. The process prints how the ranks of each run ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import gpuflow
from gpuflow.errors import GpuflowError
from gpuflow.training.shared import SharedKept

BATCH_SIZE = 12


def train(rank: int, world: int, folder: Path, meeting: str, batches: int, dies: tuple[str, int]) -> None:
    """One rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(6, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    name, seed = "nothing" if dies[0] == "wrong name" and rank else "d", rank if dies[0] == "wrong seed" else 0
    try:
        loader = gpuflow.loader(name, BATCH_SIZE, root=folder / "store", number_as="n", threads=1, seed=seed)
    except GpuflowError as error:
        (folder / f"{dies[0]} {rank}").write_text(f"{type(error).__name__}: {error}")
        return
    history: list[dict[str, Any]] = []
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.module.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        history = saved["history"]
    while len(history) < batches:
        for batch in loader:
            if dies[0] in (str(rank), "all") and len(history) == dies[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            # DDP divides by the number of ranks: this is the sum over the global batch, also where ranks have unequal shares.
            error = model(batch["field"]).squeeze(1) - batch["label"].double()
            (world * (error**2).sum()).backward()
            gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).tolist()
            optimizer.step()
            numbers: list[Any] = [None] * world
            distributed.all_gather_object(numbers, batch["n"].tolist())
            history.append({"numbers": sorted(number for some in numbers for number in some), "gradient": gradient})
            if rank == 0:
                state = {"model": model.module.state_dict(), "loader": loader.state_dict(), "history": history}
                torch.save(state, folder / "next.pt")
                os.replace(folder / "next.pt", checkpoint)
            if len(history) == batches:
                break
    assert loader._engine is not None
    kept = loader._engine.reader.kept
    (folder / f"cache {world} {rank}").write_text(str(kept._file.path) if isinstance(kept, SharedKept) else type(kept).__name__)
    loader.close()
    distributed.destroy_process_group()


def main() -> None:
    context, codes = multiprocessing.get_context("fork"), []
    for world, folder, batches, (who, when) in json.loads(sys.argv[1]):
        arguments = (world, Path(folder), f"{folder}/{uuid.uuid4().hex}", batches, (who, when))
        ranks = [context.Process(target=train, args=(rank, *arguments)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        codes.append([process.exitcode for process in ranks])
    sys.stdout.write(json.dumps(codes) + "\n")


if __name__ == "__main__":
    main()
