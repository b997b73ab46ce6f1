"""What an answer rests on: version, hardware descriptions, calibration."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from perfmodel.calibration import training_calibration
from perfmodel.job import Job


def provenance(job: Job) -> dict[str, Any]:
    """Return the `provenance` of a plan JSON."""
    machine = job.machine
    try:
        release = version("perfmodel")
    except PackageNotFoundError:
        release = "not installed"
    recalled = [
        f"{part.name}: {path}"
        for part in (machine.accelerator, machine.node, machine.cluster)
        for path, entry in part.provenance.items()
        if entry.evidence == "from memory"
    ]
    return {
        "version": release,
        "hardware": [machine.accelerator.name, machine.node.name, machine.cluster.name],
        "from_memory": recalled,
        "calibration": [
            *sorted({f"kernels/{name.split('.')[0]}/{kernel.origin}" for name, kernel in job.kernels.items()}),
            "collectives",
            f"framework/{job.framework.name}",
            f"training: {training_calibration()['evidence']}",
        ],
    }
