"""Fakes of Slurm's commands, first on PATH: set their answers and read their calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FAKES = Path(__file__).parent / "fake_slurm"


class Cluster:
    """The Slurm of the fakes; the folder holds their answers and the list of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def says(self, name: str, text: str) -> None:
        (self.folder / f"{name}.err").unlink(missing_ok=True)
        (self.folder / f"{name}.out").write_text(text)

    def refuses(self, name: str, text: str) -> None:
        (self.folder / f"{name}.err").write_text(text)

    def hangs(self, name: str, *, hang: bool = True) -> None:
        file = self.folder / f"{name}.slow"
        file.touch() if hang else file.unlink(missing_ok=True)

    def calls(self, *programs: str) -> list[list[str]]:
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [line.split("\0")[:-1] for line in lines]
        return [call for call in found if not programs or call[0] in programs]

    def knows(self, job: int, *, log: str, name: str = "exatrkx", uid: int | None = None, batch: int = 1) -> None:
        """Let `scontrol show job` report one job, in the format of Slurm 22.05."""
        owner = os.getuid() if uid is None else uid
        self.says(
            "scontrol-job",
            f"JobId={job} JobName={name}\n   UserId=somebody({owner}) GroupId=users(100) MCS_label=N/A\n"
            f"   Requeue=0 Restarts=0 BatchFlag={batch} Reboot=0 ExitCode=0:0\n   Command=/x/farm.sbatch\n"
            f"   WorkDir=/x\n   StdErr={log}\n   StdIn=/dev/null\n   StdOut={log}\n   Power=\n   \n\n",
        )

    def put_on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the fakes first on the PATH of this process and its children."""
        monkeypatch.setenv("FAKE_SLURM", str(self.folder))
        monkeypatch.setenv("PATH", os.pathsep.join([str(self.folder / "bin"), str(FAKES), os.environ["PATH"]]))

    def instead(self, name: str, script: str) -> None:
        """Replace a fake by a bash script of these lines."""
        program = self.folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)

    def let_go(self) -> None:
        """Let all hanging commands continue."""
        for file in self.folder.glob("*.slow"):
            file.unlink()
