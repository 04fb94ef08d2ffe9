"""The cluster's configuration: nodes, users, accounts, QOS and times. Frozen; a test sets fields by keyword."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class User:
    """An unprivileged user of the cluster, unknown on this machine; `qos` lists the QOS that the user may request.

    `account` is the charged account, or several separated by commas; the first is the default.
    """

    name: str
    uid: int
    account: str
    qos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition of all nodes, with its time limit as Slurm writes it."""

    name: str
    max_time: str


@dataclass(frozen=True, kw_only=True)
class Qos:
    """A quality of service; Slurm rejects a job that requests more than `max_wall`."""

    name: str
    max_wall: str


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The whole cluster. Times are in seconds, memory in MB."""

    name: str = "rehearsal"
    nodes: int = 3
    gpus_per_node: int = 4
    gpu_type: str = "a100"
    cpus_per_node: int = 64
    memory: int = 256_000
    #: Memory per node of a job that does not request any.
    memory_per_job: int = 16_000
    features: tuple[str, ...] = ("gpu", "a100")
    #: In the format of slurm.conf, such as scratch:100.
    licenses: str = ""
    partitions: tuple[Partition, ...] = (
        Partition(name="gpu", max_time="12:00:00"),
        Partition(name="short", max_time="00:10:00"),
    )
    qos: tuple[Qos, ...] = (Qos(name="regular", max_wall="12:00:00"), Qos(name="debug", max_wall="00:30:00"))
    users: tuple[User, ...] = field(
        default=(
            User(name="physicist", uid=20_001, account="m1234", qos=("regular", "debug")),
            User(name="colleague", uid=20_002, account="m5678", qos=("regular",)),
        )
    )
    #: Slurm's default is 300. Slurm notices a lost node after one to three times this time.
    slurmd_timeout: int = 5
    message_timeout: int = 5
    #: Time between SIGTERM and SIGKILL of a cancelled job; Slurm's default.
    kill_wait: int = 30

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names of the nodes: nid001, nid002, …"""
        return tuple(f"nid{number:03}" for number in range(1, self.nodes + 1))

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts of the users, each once."""
        return tuple(dict.fromkeys(account for user in self.users for account in user.account.split(",")))

    def user(self, name: str) -> User:
        """Return the user of that name, root included; raises KeyError when there is none."""
        if name == "root":
            return User(name="root", uid=0, account="root", qos=())
        return {user.name: user for user in self.users}[name]


HEAD = "head"
HEAD_ADDRESS = "10.77.0.254"


def node_address(number: int) -> str:
    """Return the address of node `number`, counted from 1."""
    return f"10.77.0.{number}"
