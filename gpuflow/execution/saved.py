"""What locality was worth: the time that shipping every chunk would have taken more.

Pure. From measured rates: those of transfers between workers, and of reading where the chunks lie."""

from __future__ import annotations

from gpuflow.execution.submit import Outcome


def saved_seconds(outcome: Outcome) -> float | None:
    """Thread-seconds by which reading the local chunks took less than having them shipped would have; negative when it took more. None
    when nothing has been shipped in this cluster yet, so that it is not known what that takes.

    At the rate of what was shipped by chunks or by bytes, whichever is better: chunks of a few bytes take as long as larger ones."""
    tally = outcome.tally
    local_nbytes = tally.read - tally.shipped + tally.ram
    if not local_nbytes:
        return 0.0
    chunks, nbytes, seconds = outcome.transferred
    if not chunks or not nbytes:
        return None
    return min(local_nbytes / nbytes, (tally.local_chunks + tally.ram_chunks) / chunks) * seconds - tally.seconds["read"]
