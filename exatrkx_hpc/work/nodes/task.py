"""The program that srun starts once per node: it runs the node's shards, then checks that the run is alive.

    python -m exatrkx_hpc.work.nodes.task OUT/shards/task.json

It prints each news item to stderr as one line of JSON. SIGUSR1, which srun forwards, and SIGTERM end it early without
leaving a partial file.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.news import News
from exatrkx_hpc.base.signals import unwind_on_stop
from exatrkx_hpc.launch.slurm.scheduler import give_back
from exatrkx_hpc.launch.slurm.workers_job import OWN_JOB
from exatrkx_hpc.work.news import RunUnheard, told_of
from exatrkx_hpc.work.nodes import heartbeat as beat
from exatrkx_hpc.work.nodes.shard_task import read_order, run_shards

STOP: Final = signal.SIGUSR1
"""The signal that stops the tasks: srun forwards it, but on SIGTERM srun kills its tasks."""


def main() -> None:
    """Run this task's shards of the order file that the argument names."""
    unwind_on_stop()
    signal.signal(STOP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    path = Path(sys.argv[1])
    settings, shards, of = read_order(path)
    rank, tasks = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()

    def say(news: News) -> None:
        print(news.as_json(), file=sys.stderr, flush=True)

    tell = told_of(say, node=node)
    run_shards(settings, shards[rank::tasks], of=of, node=node, tell=tell)
    # If the first node of a job dies, the job stays alive on the others, and no program ends it: so do it here.
    if (job := os.environ.get(OWN_JOB)) and not beat.is_heard(path.with_name(beat.NAME)):
        tell(RunUnheard(job=job, answer=give_back(job)))


if __name__ == "__main__":
    main()
