"""A real Slurm of several nodes on one machine: slurmctld, slurmdbd with MariaDB, munge, one slurmd per node.

    with cluster() as c:
        c.wait_idle()
        c.run(["sbatch", "--wait", "job.sh"], cwd=c.shared)     on the head, as the unprivileged user
        c.node("nid001").crash()

Each pretend machine has its own network, host name, mounts and processes. Its network has no connection to the
outside, so a client must run inside: use `run` and `spawn`. Leaving the block removes the whole cluster.
"""

from __future__ import annotations

from cluster.config import ClusterConfig, User
from cluster.entering import Entered
from cluster.errors import ClusterError
from cluster.host import Head, Host, Node
from cluster.needs import missing
from cluster.slurm import Cluster, cluster

__all__ = ["Cluster", "ClusterConfig", "ClusterError", "Entered", "Head", "Host", "Node", "User", "cluster", "missing"]
