"""What every launch script needs: the run that an answer describes, and how a script is written."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.architecture import Architecture, load_architecture
from perfmodel.framework import Framework, frameworks
from perfmodel.pipeline import split_layers
from perfmodel.plan import plan_from_rows
from solvers.result import Result

_WIDTH = 116


@dataclass(frozen=True)
class Run:
    """A training run as an answer describes it.

    Parameters
    ----------
    plan : mapping
        The plan by public names.
    architecture : Architecture
        The model.
    framework : Framework
        What the prediction took for the training framework.
    workload : mapping
        The scenario's workload: ``seq_len``, ``global_batch``, ``precision`` and perhaps ``tokens``.
    nodes, ranks_per_node : int
        Nodes, and accelerators of each.
    family : str
        Architecture of the accelerator, such as ``hopper``.
    cp_exchange_size : int
        Context-parallel neighbours that deal heads out among themselves.
    summary : tuple of str
        What the run is and what was predicted for it, for people.
    """

    plan: Mapping[str, Any]
    architecture: Architecture
    framework: Framework
    workload: Mapping[str, Any]
    nodes: int
    ranks_per_node: int
    family: str
    cp_exchange_size: int
    summary: tuple[str, ...]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step and pipeline."""
        return int(self.workload["global_batch"]) // int(self.plan["dp"] * self.plan["micro_batch"])

    @property
    def stage_layers(self) -> list[int]:
        """Layers of every pipeline stage."""
        pp, plan = self.plan["pp"], plan_from_rows([dict(self.plan)])
        split = split_layers(self.architecture.depth, self.architecture.leading, plan.pp, plan.vpp)
        first, inner, last = (int(layers[0]) for layers in split.layers)
        return [first] if pp == 1 else [first, *[inner] * (pp - 2), last]

    @property
    def chunk_layers(self) -> list[int]:
        """Layers of every model chunk, from the embedding to the logits.

        A full stage holds equal chunks; what the first stage lacks is missing from its first chunks and what the
        last stage lacks from its last, so that the ends of the model, which also embed and predict, are the short
        ones.
        """
        pp, vpp = self.plan["pp"], self.plan["vpp"]
        full = -(-self.architecture.depth // (pp * vpp))
        chunks = [[full] * vpp for _ in range(pp)]
        for stage, layers in enumerate(self.stage_layers):
            short = full * vpp - layers
            order = range(vpp) if stage == 0 else reversed(range(vpp))
            for chunk in order:
                taken = min(short, chunks[stage][chunk])
                chunks[stage][chunk] -= taken
                short -= taken
        return [chunks[stage][chunk] for chunk in range(vpp) for stage in range(pp)]


def run_of(result: Result) -> Run:
    """Read the run that an answer describes.

    Parameters
    ----------
    result : Result
        An answer about training that has a plan.

    Returns
    -------
    Run
        The run.

    Raises
    ------
    ValueError
        There is no plan to launch.
    """
    if result.plan is None or result.prediction is None or result.kind != "train":
        raise ValueError("only a training plan can be launched")
    scenario, plan, prediction = result.scenario, result.plan, result.prediction
    architecture = load_architecture(scenario["model"], Path())
    node, workload = scenario["cluster"]["node"], scenario["workload"]
    accelerator = node["accelerators"]["type"]
    step, low, high = (prediction[f"step_time_s{end}"] for end in ("", "_p10", "_p90"))
    summary = (
        f"{architecture.name} on {scenario['nodes']} x {node['name']} ({prediction['gpus']} {accelerator['name']}), "
        f"{workload['precision']}, {workload['seq_len']} tokens a sequence, "
        f"{workload['global_batch']} sequences a step",
        f"perfmodel {result.provenance.get('version', '')} predicts {step:.4g} s a step "
        f"(P10 {low:.4g} s, P90 {high:.4g} s) for framework {scenario['framework']}",
        "plan: " + ", ".join(f"{key} {shown(value)}" for key, value in plan.items()),
    )
    return Run(
        plan=plan,
        architecture=architecture,
        framework=frameworks()[scenario["framework"]],
        workload=workload,
        nodes=scenario["nodes"],
        ranks_per_node=node["accelerators"]["count"],
        family=accelerator["architecture"],
        cp_exchange_size=prediction["cp_exchange_size"],
        summary=summary,
    )


def shown(value: object) -> str:
    """Write a value of a plan as people do."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def torchrun(run: Run, *program: str) -> list[Sequence[str]]:
    """Return the words that start a program on every accelerator of every node, before the program's own.

    Parameters
    ----------
    run : Run
        The run.
    *program : str
        The program: a file, or ``-m`` and a module.
    """
    return [
        ("torchrun",),
        ("--nnodes", str(run.nodes), "--nproc-per-node", str(run.ranks_per_node)),
        ("--node-rank", "$NODE_RANK", "--master-addr", "$MASTER_ADDR", "--master-port", "${MASTER_PORT:-29500}"),
        program,
    ]


def script(
    comments: Iterable[str],
    missing: Iterable[str],
    command: Iterable[Sequence[str]],
    *,
    before: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Write a shell script of one command.

    Parameters
    ----------
    comments : iterable of str
        What to say first.
    missing : iterable of str
        What the prediction relied on and the system cannot express; a line of its own each.
    command : iterable of sequence of str
        Its words; those of one sequence stand in one line if there is room. A word that starts with ``$`` is left to
        the shell, every other is quoted.
    before : iterable of str
        Lines to run before the command, as they are.
    environment : mapping, optional
        Variables to set for the command.

    Returns
    -------
    str
        The script.
    """
    lines = ["#!/usr/bin/env bash"]
    # a name may hold a line feed, which would end the comment
    lines += ["# " + " ".join(text.split()) for text in comments]
    lines += ["# not expressible: " + " ".join(text.split()) for text in missing]
    lines += ["set -e", *before]
    rows = command_rows(command)
    rows[0] = " ".join([*(f"{key}={shlex.quote(value)}" for key, value in (environment or {}).items()), rows[0]])
    lines.append(" \\\n  ".join(rows))
    return "\n".join(lines) + "\n"


def command_rows(command: Iterable[Sequence[str]]) -> list[str]:
    """Lay the words of a command out in lines, quoted for the shell; see `script`."""
    rows: list[str] = []
    for group in command:
        row = ""
        for option in _options(group):
            if row and len(row) + len(option) > _WIDTH:
                rows.append(row)
                row = ""
            row = f"{row} {option}".lstrip()
        rows += [row] if row else []
    return rows


def _options(words: Sequence[str]) -> Iterable[str]:
    """Gather every option with its values, so that no line ends between them."""
    option: list[str] = []
    for word in words:
        if word.startswith("--") and option:
            yield " ".join(option)
            option = []
        option.append(f'"{word}"' if word.startswith("$") else shlex.quote(word))
    if option:
        yield " ".join(option)


def options(values: Mapping[str, object]) -> list[str]:
    """Write options and their values.

    Parameters
    ----------
    values : mapping
        Option -> value. True is the option alone, a sequence is several values, None and False leave it out.

    Returns
    -------
    list of str
        Words.
    """
    words: list[str] = []
    for option, value in values.items():
        if value is None or value is False:
            continue
        words.append(option)
        if value is True:
            continue
        words += [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
    return words


def periodic(depth: int, count: int) -> int | None:
    """Return the period N of `count` layers of one kind among `depth`, every Nth being one; None if there is none."""
    if not count:
        return None
    period = depth // count
    return period if depth // period == count else None
