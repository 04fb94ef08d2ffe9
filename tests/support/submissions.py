"""Submissions that no process makes."""

from __future__ import annotations

from exatrkx_hpc.launch.slurm.submissions import Submission

TOKEN = "0123456789abcdef"


def submission(script: str = "/x/farm.sbatch") -> Submission:
    """Return the submission of a script, of no known machine."""
    return Submission(token=TOKEN, script=script, name="exatrkx", began=0, host="", boot="", pid=0, started=0)
