"""nginx's limits for a number of members: memory for the list, connections, open files, idle connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

#: A member takes a little less than 1 KiB of a zone (300 fill 256 KiB). The zone has room for twice as many.
_KIB_PER_MEMBER: Final = 2
_LEAST_ZONE_KIB: Final = 256
#: Connections of a worker process, to clients and to servers together; nginx takes about 0.5 KiB for each at its start.
_LEAST_CONNECTIONS, _CONNECTIONS_PER_MEMBER, _MOST_CONNECTIONS = 8192, 32, 65536
#: Files of a worker that are no connections: sockets that listen, the log, its channel to the master.
_OTHER_FILES: Final = 64
_LEAST_IDLE, _IDLE_PER_MEMBER = 32, 4
#: nginx workers beyond this number have nothing to do: one passes on some thousand events a second.
_MOST_WORKERS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """nginx's limits: the size of a zone in KiB; connections, open files and idle connections of each worker."""

    zone_kib: int
    connections: int
    open_files: int
    keepalive: int


def limits_of(members: int, *, open_files: int) -> Limits:
    """Return the limits for `members` members of an nginx that may open `open_files` files for each worker.

    They grow in powers of two, so that most changes of the members change no limit.
    """
    wanted = min(_power(max(_LEAST_CONNECTIONS, _CONNECTIONS_PER_MEMBER * members)), _MOST_CONNECTIONS)
    files = min(open_files, wanted + _OTHER_FILES)
    connections = max(files - _OTHER_FILES, files // 2)
    idle = min(max(_LEAST_IDLE, _power(_IDLE_PER_MEMBER * members)), connections // 4)
    return Limits(
        zone_kib=_power(max(_LEAST_ZONE_KIB, _KIB_PER_MEMBER * members)),
        connections=connections,
        open_files=files,
        keepalive=max(1, idle),
    )


def most_open_files() -> int:
    """Return how many files a process of this user may open: the hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def workers_for(cpus: int) -> int:
    """Return how many nginx workers are of use with this number of CPUs."""
    return max(1, min(cpus, _MOST_WORKERS))


def _power(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << (max(1, number) - 1).bit_length()
