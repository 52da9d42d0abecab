"""Memory of large networks that are no longer there."""

import ctypes
import gc


def give_memory_back() -> None:
    """Returns what was freed to the system, of which glibc keeps gigabytes.

    Kept, it grew to 8 GiB in one worker, and the system killed another's program.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim:
        trim(0)
