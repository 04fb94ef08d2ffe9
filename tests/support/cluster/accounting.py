"""The accounting: MariaDB and slurmdbd on the head, with the accounts, users and QOS of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.entering import Entered
from cluster.errors import ClusterError
from cluster.host import Head
from cluster.patience import wait_for
from exatrkx_hpc.base.process import Child, spawn


def begin_database(base: Path) -> Child:
    """Start to create an empty database; this takes 2 s and needs no pretend machine."""
    install = ["mysql_install_db", f"--defaults-file={base}/etc/my.cnf"]
    quick = ["--user=root", "--skip-test-db", "--skip-name-resolve", "--auth-root-authentication-method=normal"]
    return spawn([*install, *quick], log=base / "logs" / "database.log")


def start(head: Head, config: ClusterConfig, base: Path, database: Child) -> None:
    """Start the accounting when the database exists; raises ClusterError with the last output of what failed."""
    if database.wait(60) != 0:
        raise ClusterError(f"mysql_install_db failed: {_tail(base, 'database')}")
    argv = ["mariadbd", f"--defaults-file={base}/etc/my.cnf"]
    mariadb = head.spawn(argv, log=base / "logs" / "database.log", user="root")
    socket = Path(f"/proc/{head.first}/root/run/mysqld/mysqld.sock")
    _wait(socket.exists, mariadb, "mariadbd")
    slurmdbd = head.spawn(["slurmdbd", "-D"], log=base / "logs" / "slurmdbd.log", user="root")
    _wait(lambda: head.run(["sacctmgr", "-n", "show", "qos"], user="root").returncode == 0, slurmdbd, "slurmdbd")
    for words in _commands(config):
        done = head.run(["sacctmgr", "--immediate", *words.split()], user="root")
        if done.returncode:
            raise ClusterError(f"sacctmgr {words}: {done.complaint}")


def _commands(config: ClusterConfig) -> list[str]:
    """Return the commands for sacctmgr; Slurm then rejects a job over a limit instead of leaving it pending."""
    return [
        f"add cluster {config.name}",
        *(f"add qos {qos.name} set MaxWall={qos.max_wall} Flags=DenyOnLimit" for qos in config.qos),
        *(f"add account {account} Cluster={config.name}" for account in config.accounts),
        *(
            f"add user {user.name} Account={user.account} QOS={','.join(user.qos)} DefaultQOS={user.qos[0]}"
            for user in config.users
        ),
    ]


def _wait(there: Callable[[], bool], program: Entered, what: str) -> None:
    wait_for(
        there,
        lives=lambda: program.returncode() is None,
        what=lambda: f"{what} does not answer: {program.log.read_text(errors='replace')[-1000:]}",
    )


def _tail(base: Path, name: str) -> str:
    return (base / "logs" / f"{name}.log").read_text(errors="replace")[-1000:]
