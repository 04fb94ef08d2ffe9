"""Render the scripts of a plan."""

from __future__ import annotations

from exatrkx_hpc.base.templates import render
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.words import comment, directive, sh


def render_server(plan: FarmPlan) -> str:
    """Return the text of `server.sh`, which every task of the job runs."""
    return render("jobs/server.sh.j2", filters={"sh": sh}, plan=plan)


def render_job(plan: FarmPlan) -> str:
    """Return the text of `farm.sbatch`, which contains `server.sh`."""
    server_script = render_server(plan).rstrip("\n")
    filters = {"sh": sh, "directive": directive, "comment": comment}
    return render("jobs/farm.sbatch.j2", filters=filters, plan=plan, server_script=server_script)
