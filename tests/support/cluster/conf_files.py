"""The texts and paths of the configuration files. Only `write_files` writes anything."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cluster.config import HEAD, HEAD_ADDRESS, ClusterConfig, node_address


def slurm_conf(config: ClusterConfig, base: Path, *, cgroup: bool) -> str:
    """Return slurm.conf; without `cgroup`, Slurm tracks a job's processes only by their parents."""
    pairs = {
        "ClusterName": config.name,
        "SlurmctldHost": f"{HEAD}({HEAD_ADDRESS})",
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "StateSaveLocation": base / "state",
        "SlurmdSpoolDir": base / "spool" / "%n",
        "SlurmctldPidFile": "/run/slurmctld.pid",
        "SlurmdPidFile": "/run/slurmd.pid",
        "ProctrackType": "proctrack/cgroup" if cgroup else "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if cgroup else "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": 5,
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerNode": config.memory_per_job,
        "GresTypes": "gpu",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        # The nodes claim more CPUs and memory than the machine has.
        "SlurmdParameters": "config_overrides",
        "ReturnToService": 2,
        "SlurmdTimeout": config.slurmd_timeout,
        "MessageTimeout": config.message_timeout,
        "KillWait": config.kill_wait,
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=5,bf_interval=2",
        "EnforcePartLimits": "ALL",
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": HEAD,
        "AccountingStorageEnforce": "associations,limits,qos",
        "AccountingStorageTRES": "gres/gpu",
    }
    if config.licenses:
        pairs["Licenses"] = config.licenses
    lines = [f"{key}={value}" for key, value in pairs.items()]
    return "\n".join([*lines, *_nodes(config), *_partitions(config)]) + "\n"


def _nodes(config: ClusterConfig) -> list[str]:
    shape = (
        f"CPUs={config.cpus_per_node} Sockets=1 CoresPerSocket={config.cpus_per_node // 2} ThreadsPerCore=2 "
        f"RealMemory={config.memory} Gres=gpu:{config.gpu_type}:{config.gpus_per_node} "
        f"Feature={','.join(config.features)}"
    )
    return [
        f"NodeName={name} NodeAddr={node_address(number)} {shape}"
        for number, name in enumerate(config.node_names, start=1)
    ]


def _partitions(config: ClusterConfig) -> list[str]:
    return [
        f"PartitionName={partition.name} Nodes=ALL MaxTime={partition.max_time} State=UP"
        + (" Default=YES" if partition is config.partitions[0] else "")
        for partition in config.partitions
    ]


def gres_conf(config: ClusterConfig, base: Path) -> str:
    """Return gres.conf: Slurm 22.05 needs a device file for each GPU."""
    return f"Name=gpu Type={config.gpu_type} File={base}/devices/nvidia[0-{config.gpus_per_node - 1}]\n"


def cgroup_conf() -> str:
    """Return cgroup.conf: a job that exceeds its requested memory is killed; cores are not limited."""
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainRAMSpace=yes\nConstrainCores=no\n"


def slurmdbd_conf() -> str:
    """Return slurmdbd.conf; the database listens on a socket of the head."""
    return (
        f"AuthType=auth/munge\nDbdHost={HEAD}\nSlurmUser=root\nPidFile=/run/slurmdbd.pid\n"
        "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\nStorageLoc=slurm_acct_db\n"
    )


def database_conf(base: Path) -> str:
    """Return my.cnf: small, no network, no flushes, because no data outlives the cluster.

    The temporary folder is not shared: a server that starts removes the temporary tables of all others in its folder.
    """
    return (
        f"[mysqld]\nuser=root\ndatadir={base}/database\ntmpdir={base}/database-tmp\nsocket=/run/mysqld/mysqld.sock\npid-file=/run/mysqld/pid\n"
        "skip-networking\nskip-name-resolve\ninnodb_log_file_size=16M\ninnodb_buffer_pool_size=64M\n"
        "innodb_flush_log_at_trx_commit=0\ninnodb_flush_method=nosync\ninnodb_doublewrite=0\nperformance_schema=off\n"
    )


def hosts(config: ClusterConfig) -> str:
    """Return /etc/hosts: each node by its name, and by its name in a fast network (`-hsn0`), as on some sites."""
    lines = ["127.0.0.1 localhost", f"{HEAD_ADDRESS} {HEAD}"]
    lines += [f"{node_address(n)} {name} {name}-hsn0" for n, name in enumerate(config.node_names, start=1)]
    return "\n".join(lines) + "\n"


def passwd(config: ClusterConfig, base: Path) -> str:
    """Return /etc/passwd: the entries of this machine and the users of the cluster."""
    lines = [f"{user.name}:x:{user.uid}:{user.uid}::{base}/home/{user.name}:/bin/bash" for user in config.users]
    return Path("/etc/passwd").read_text() + "\n".join(lines) + "\n"


def group(config: ClusterConfig) -> str:
    """Return /etc/group: the entries of this machine and a group for each user."""
    return Path("/etc/group").read_text() + "".join(f"{user.name}:x:{user.uid}:\n" for user in config.users)


def write_files(config: ClusterConfig, base: Path, *, cgroup: bool) -> None:
    """Create all folders and files that the cluster needs before it starts, under `base`."""
    base.chmod(0o755)
    for folder in (
        "etc/slurm",
        "state",
        "devices",
        "database-tmp",
        "logs",
        "shared",
        "hosts",
        "home",
        *(f"spool/{name}" for name in config.node_names),
    ):
        (base / folder).mkdir(parents=True)
    etc = base / "etc"
    _write(etc / "slurm" / "slurm.conf", slurm_conf(config, base, cgroup=cgroup))
    _write(etc / "slurm" / "gres.conf", gres_conf(config, base))
    _write(etc / "slurm" / "cgroup.conf", cgroup_conf())
    _write(etc / "slurm" / "slurmdbd.conf", slurmdbd_conf(), mode=0o600)
    _write(etc / "my.cnf", database_conf(base))
    _write(etc / "hosts", hosts(config))
    _write(etc / "passwd", passwd(config, base))
    _write(etc / "group", group(config))
    _write(etc / "munge.key", secrets.token_hex(64), mode=0o600)
    (base / "shared").chmod(0o1777)
    for user in config.users:
        home = base / "home" / user.name
        home.mkdir(mode=0o700)
        os.chown(home, user.uid, user.uid)
    for number in range(config.gpus_per_node):
        device = base / "devices" / f"nvidia{number}"
        os.mknod(device, 0o020666, os.makedev(1, 3))  # the same device as /dev/null
        device.chmod(0o666)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(text)
