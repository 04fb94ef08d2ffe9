"""traccc with the backend of a site, `traccc-gpu`: as `traccc`, but for a detector that this program does not know.

A site that gives the list of its modules, in a workload file of its own, has unknown IDs refused before they are sent.
"""

from __future__ import annotations

from typing import Final

from exatrkx_hpc.work.workloads.traccc import SITE_MODEL, traccc_workload

WORKLOAD: Final = traccc_workload("traccc-gpu", model=SITE_MODEL)
