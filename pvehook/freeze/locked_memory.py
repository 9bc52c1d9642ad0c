"""Keeps the daemon's memory in memory: a page that must be read back from a stalled disk would hold up a thaw."""

from __future__ import annotations

import ctypes

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # Linux include/uapi/asm-generic/mman.h


def lock_memory() -> None:
    """Not allowed outside of the service (RLIMIT_MEMLOCK), and then no fault."""
    ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
