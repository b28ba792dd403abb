"""Keeps the memory that one step frees for the next: a tenth to a quarter of training and of export were page faults.

glibc gives large blocks back to the system at once and asks for them again in the next step. Its settings are read
when a process begins, so these commands start themselves anew, once.
"""

import itertools
import os
import sys

TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=99999999999:glibc.malloc.arena_max=1"
)
"""Transparent huge pages, nothing mapped apart, nothing given back, one heap for all threads.

Source: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html.
"""

COMMANDS = {"fit": "brainq_torch.fit", "export": "export", "restore": "tools.restore"}
SWITCH = "--fast_malloc"
_OLDEST_GLIBC = (2, 35)  # knows hugetlb


def restart_to_keep_memory() -> None:
    """Start one of ``COMMANDS``, as ``brainq`` or ``python -m``, anew with the settings, before PyTorch loads."""
    words, pairs = sys.orig_argv, set(itertools.pairwise(sys.orig_argv))
    script = os.path.basename(sys.argv[0]) == "brainq" and not COMMANDS.keys().isdisjoint(sys.argv[1:2])
    starts = script or (sys.argv[:1] == ["-m"] and any(("-m", module) in pairs for module in COMMANDS.values()))
    off = f"{SWITCH}=false" in words or (SWITCH, "false") in pairs
    if starts and not off and "GLIBC_TUNABLES" not in os.environ and _glibc() >= _OLDEST_GLIBC:
        os.execve(sys.executable, [sys.executable, *words[1:]], os.environ | {"GLIBC_TUNABLES": TUNABLES})


def _glibc() -> tuple[int, ...]:
    """Return the C library's version, (2, 36); () where it is another one."""
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return ()
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return tuple(map(int, version.split(".")[:2])) if name == "glibc" else ()
