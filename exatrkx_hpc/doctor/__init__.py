"""Check that everything a farm needs is available; each check has a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor.engine import engine_findings
from exatrkx_hpc.doctor.finding import Finding, asked
from exatrkx_hpc.doctor.monitors import monitor_findings
from exatrkx_hpc.doctor.orphans import orphan_findings
from exatrkx_hpc.doctor.places import place_findings
from exatrkx_hpc.doctor.ports import port_findings
from exatrkx_hpc.doctor.secrets import secret_findings
from exatrkx_hpc.doctor.slurm import slurm_findings
from exatrkx_hpc.fleet.balancer.balancers import kind_of
from exatrkx_hpc.fleet.events import WITHOUT_PROMETHEUS
from exatrkx_hpc.launch.embedded.triton import embedded_triton
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.schedulers import scheduler_of, uses_own_triton

__all__ = ["Finding", "examine"]


def examine(farm: Farm, plan: Callable[[], FarmPlan]) -> Iterator[Finding]:
    """Yield a finding for each thing that `farm` needs, in the order of use.

    `plan` returns the plan of its job.
    """
    yield from place_findings(farm)
    yield from _ASKED[farm.cluster.scheduler](farm, plan)
    yield from engine_findings(farm)
    balancer = kind_of(farm.balancer)
    yield asked(balancer.program, balancer.find)
    yield from port_findings(farm)
    yield from secret_findings(farm)
    if farm.monitor.prometheus:
        yield _prometheus()
    scheduler = scheduler_of(farm)
    yield from monitor_findings(FarmDir.of(farm), lambda job: scheduler.info(job).state)
    yield from orphan_findings(farm, lambda job: scheduler.info(job).state)


def _embedded_findings(farm: Farm, plan: Callable[[], FarmPlan]) -> Iterator[Finding]:
    if uses_own_triton(farm):
        yield asked("tritonserver", lambda: str(embedded_triton(FarmDir.of(farm).triton, lay_out=False).server))


#: The checks of each scheduler, by the value of `cluster.scheduler`.
_ASKED: Mapping[str, Callable[[Farm, Callable[[], FarmPlan]], Iterator[Finding]]] = {
    "slurm": slurm_findings,
    "local": _embedded_findings,
}


def _prometheus() -> Finding:
    """Check that Prometheus is installed; a missing one is only a warning."""
    remedy = "install the package 'prometheus', or set monitor.prometheus to false"
    found = asked("prometheus", lambda: find_program("prometheus", remedy=remedy))
    if found.ok:
        return found
    return Finding(what="prometheus", ok=True, found=f"{found.found}; {WITHOUT_PROMETHEUS}", remedy=found.remedy)
