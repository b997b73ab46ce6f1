"""A saved plan read back as the scenario it answers."""

from dataclasses import replace

from hardware.faults import InputError
from hardware.yaml_source import Source

SCHEMA = "perfmodel.plan/1"


def scenario_of(source: Source) -> Source:
    """Turn a plan JSON into the scenario it answers, with its plan.

    Parameters
    ----------
    source : Source
        A plan JSON, or a scenario, which stays as it is.

    Returns
    -------
    Source
        The scenario with the positions of the file.

    Raises
    ------
    InputError
        The plan is of another version, or holds no scenario.
    """
    data = source.data
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("perfmodel.plan/"):
        return source
    if schema != SCHEMA:
        raise InputError([source.fault(("schema",), f'only plans of "{SCHEMA}" can be read [got "{schema}"]')])
    scenario = data.get("scenario")
    if not isinstance(scenario, dict):
        raise InputError([source.fault(("scenario",), "missing; a plan is read again through its scenario")])
    positions = {path[1:]: place for path, place in source.positions.items() if path[:1] == ("scenario",)}
    if data.get("plan") is not None:
        scenario = {**scenario, "plan": data["plan"]}
        positions = {path: place for path, place in positions.items() if path[:1] != ("plan",)}
        positions |= {path: place for path, place in source.positions.items() if path[:1] == ("plan",)}
    return replace(source, data=scenario, positions=positions)
