"""A calibrated accelerator as its hardware file says it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from hardware.catalogue import UnknownName, find
from hardware.schema import Accelerator
from perfmodel.calibrate_kernels import Calibration


def description(calibration: Calibration, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accelerator's description with its own efficiency.

    Parameters
    ----------
    calibration : Calibration
        What was fitted.
    written : mapping
        The description as its file has it, quantities with their units.

    """
    data = dict(written)
    efficiency = dict(data.get("efficiency") or {})
    provenance = dict(efficiency.pop("provenance", None) or {})
    for part in calibration.parts:
        key = f"{part.model}.{part.variant}"
        values = {name: float(f"{value:.4g}") for name, value in part.parameters.model_dump(mode="json").items()}
        efficiency[part.model] = {**(efficiency.get(part.model) or {}), part.variant: values}
        quality = f"{part.before['mape']:.1%} before, {part.after['mape']:.1%} after"
        of = f"{part.held_out} rows held out" if part.held_out else "the fitted rows"
        provenance[key] = {
            "source": f"{part.rows} rows of {', '.join(part.files)}; perfmodel calibrate",
            "date": date.today().isoformat(),
            "evidence": "measured",
            "note": f"MAPE {quality}, of {of}; drawn to {part.origin}",
        }
    return {**data, "efficiency": {**efficiency, "provenance": provenance}}


def written_description(accelerator: Accelerator) -> dict[str, Any]:
    """Return an accelerator as plain data: as the catalogue's file has it, else from the parsed description."""
    from importlib.resources import files

    from hardware.yaml_source import read_yaml

    try:
        same = find("accelerator", accelerator.name) == accelerator
    except UnknownName:
        same = False
    if same:
        path = files("hardware") / "catalog" / "accelerators" / f"{accelerator.name}.yaml"
        return dict(read_yaml(path.read_text(encoding="utf-8"), path.name).data)
    data: dict[str, Any] = accelerator.model_dump(mode="json", exclude_unset=True)
    return data
