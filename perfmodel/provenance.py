"""What an answer rests on: version, hardware descriptions, calibration."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hardware.catalogue import Machine
from perfmodel.calibration import training_calibration
from perfmodel.job import Job


def release() -> str:
    """Return the version of the program."""
    try:
        return version("perfmodel")
    except PackageNotFoundError:
        return "not installed"


def recalled(machine: Machine) -> list[str]:
    """List the numbers of a machine's descriptions that no document was read for."""
    return [
        f"{part.name}: {path}"
        for part in (machine.accelerator, machine.node, machine.cluster)
        for path, entry in part.provenance.items()
        if entry.evidence == "from memory"
    ]


def provenance(job: Job) -> dict[str, Any]:
    """Return the `provenance` of a plan JSON."""
    machine = job.machine
    return {
        "version": release(),
        "hardware": [machine.accelerator.name, machine.node.name, machine.cluster.name],
        "from_memory": recalled(machine),
        "calibration": [
            *sorted({f"kernels/{name.split('.')[0]}/{kernel.origin}" for name, kernel in job.kernels.items()}),
            "collectives",
            f"framework/{job.framework.name}",
            f"training: {training_calibration()['evidence']}",
        ],
    }
