"""What every launch of inference engines needs: pools of an answer, where they stand, and how a script is written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from cli.emit.places import Place, placed
from cli.emit.predicted import summary
from cli.emit.run import command_rows
from perfmodel.architecture import Architecture, bundled_architecture
from perfmodel.serving.engine import Engine
from perfmodel.serving.server import Server
from solvers.result import Result
from solvers.serve_case import Instances, case_of
from solvers.serve_groups import groups_of
from solvers.serve_question import ServeHistogram, ServeLengths, ServePlan, ServeWorkload
from solvers.serve_scenario import ServeScenario

LONGER = 1e-4
"""Share of requests of a distribution without end that the emitted model length may leave out."""

BLOCK_TOKENS = 128
"""Tokens of the largest cache block of an engine: the emitted model length takes whole blocks."""

ARRANGED = {
    "layered_prefill": "prompts of a released engine advance by pieces through all layers",
    "overlap": "released engines take steps in one under tensor parallelism",
    "prefill_share": "phases of a released engine take turns on all compute units",
}
"""Fields of a plan that no engine has an option for, and what it does instead."""

PLAIN = (None, False, "none", 0)
"""Their values where steps are as the engine takes them."""


@dataclass(frozen=True)
class Pool:
    """Instances of one layout.

    Parameters
    ----------
    name : str
        Its own among the pools.
    role : str
        ``both``, ``prefill`` or ``decode``.
    precision_weights, precision_kv : str
        Types of weights and cache.
    model : str
        Variable that names the weights.
    per_node : int
        Accelerators of a node.
    tp, pp, dp, ep, replicas, max_num_seqs, max_num_batched_tokens : int
        As the plan names them.
    max_model_len : int
        Tokens of the longest request that they take.
    cache_bytes, cache_tokens : int
        Cache of keys and values of an accelerator [bytes], and tokens that a rank of attention data parallelism holds.
    weights, workspace, context, device : float
        Memory of an accelerator by part, and all of it [bytes].
    places : tuple of tuple of Place
        Nodes of every instance; the first leads.
    """

    name: str
    role: str
    precision_weights: str
    precision_kv: str
    model: str
    per_node: int
    tp: int
    pp: int
    dp: int
    ep: int
    replicas: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    cache_bytes: int
    cache_tokens: int
    weights: float
    workspace: float
    context: float
    device: float
    places: tuple[tuple[Place, ...], ...]

    @property
    def ranks(self) -> int:
        """Ranks of a pipeline stage."""
        return self.tp * self.dp


@dataclass(frozen=True)
class Serving:
    """A deployment as an answer describes it.

    Parameters
    ----------
    plan : mapping
        The plan by public names.
    architecture : Architecture
        The model.
    checkpoint : str or None
        Where its weights are published, if that is known.
    engine : Engine
        What the prediction took for the engine.
    workload : ServeWorkload
        What is asked.
    nodes : tuple of pair of str and int
        Names of nodes and how many there are of each, in their order.
    pools : tuple of Pool
        One that does everything, or one for prompts and one for the tokens that follow; or several of each.
    summary : tuple of str
        What the deployment is and what was predicted for it, for people.
    missing : tuple of str
        What no engine can express.
    """

    plan: Mapping[str, Any]
    architecture: Architecture
    checkpoint: str | None
    engine: Engine
    workload: ServeWorkload
    nodes: tuple[tuple[str, int], ...]
    pools: tuple[Pool, ...]
    summary: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def drafted(self) -> int:
        """Tokens drafted a step."""
        return int(self.plan.get("draft_tokens", 0))

    @property
    def spread(self) -> bool:
        """Whether there is more than one node."""
        return sum(count for _, count in self.nodes) > 1


@dataclass(frozen=True)
class Launch:
    """A script and what it does not say.

    Parameters
    ----------
    text : str
        The script.
    missing : tuple of str
        What the prediction relied on and the engine cannot express.
    """

    text: str
    missing: tuple[str, ...]


def serving_of(result: Result, question: ServeScenario) -> Serving:
    """Read the deployment that an answer describes.

    Parameters
    ----------
    result : Result
        An answer about serving that has a plan.
    question : ServeScenario
        What was asked.

    Returns
    -------
    Serving
        The deployment.

    Raises
    ------
    ValueError
        There is no plan to launch.
    """
    if result.plan is None or result.prediction is None or result.kind != "serve":
        raise ValueError("only a plan of serving can be launched")
    parts = _parts(ServePlan.model_validate(result.plan), question)
    missing = [f"{name}: {told}" for name, told in ARRANGED.items() if result.plan.get(name) not in PLAIN]
    machines = {kind.machine.accelerator.name: kind.machine for *_, kind in parts}
    stands: dict[int, list[tuple[Place, ...]]] = {}
    before = 0
    for name, machine in machines.items():
        each = [
            (number, int(part.deployment.accelerators), int(part.deployment.tp))
            for number, (_, part, _, kind) in enumerate(parts)
            if kind.machine.accelerator.name == name
            for _ in range(part.replicas)
        ]
        found = placed([one[1:] for one in each], machine.nodes, machine.node.accelerators.count)
        for (number, *_), places in zip(each, found, strict=True):
            shifted = tuple(Place(place.node + before, place.accelerators) for place in places)
            stands.setdefault(number, []).append(shifted)
        before += machine.nodes
    kinds = {server.precision_weights for _, _, server, _ in parts}
    pools = []
    for number, (role, part, server, kind) in enumerate(parts):
        taken = tuple(places for places in stands[number] if places)
        if len(taken) < part.replicas:
            left = f"{part.replicas - len(taken)} of {part.replicas} instances of {part.deployment.accelerators}"
            missing.append(f"replicas: {left} accelerators have no room without lying across nodes; they are left out")
        name = role if [one[0] for one in parts].count(role) == 1 else f"{role}-{number + 1}"
        model = "MODEL" if len(kinds) == 1 else f"MODEL_{server.precision_weights.upper()}"
        pools.append(_pool(name, role, part, server, kind, model, taken, missing))
    named = question.question.model if isinstance(question.question.model, str) else None
    return Serving(
        plan=result.plan,
        architecture=question.architecture,
        checkpoint=_checkpoint(named, question.architecture),
        engine=question.engine,
        workload=question.question.workload,
        nodes=tuple((machine.node.name, machine.nodes) for machine in machines.values()),
        pools=tuple(pools),
        summary=summary(result, question),
        missing=tuple(missing),
    )


def _parts(plan: ServePlan, question: ServeScenario) -> list[tuple[str, Instances, Server, ServeScenario]]:
    """Return every pool's role, instances, model with its types, and the question on its accelerators."""
    if plan.groups:
        groups = groups_of(question, plan)
        return [(one.asked.phase, one.case.tokens, one.case.server, one.case.scenario) for one in groups]
    case = case_of(question, plan)
    if not case.disaggregated:
        return [("both", case.tokens, case.server, question)]
    return [("prefill", case.prompts, case.server, question), ("decode", case.tokens, case.server, question)]


def _checkpoint(name: str | None, architecture: Architecture) -> str | None:
    """Return the repository of a bundled model's weights; its sizes were read from the configuration there."""
    known = name and bundled_architecture(name)
    repository = architecture.source.removeprefix("https://huggingface.co/").partition("/blob/")[0]
    return repository if known and repository.count("/") == 1 and "//" not in repository else None


def _pool(
    name: str,
    role: str,
    part: Instances,
    server: Server,
    question: ServeScenario,
    model: str,
    places: tuple[tuple[Place, ...], ...],
    missing: list[str],
) -> Pool:
    memory, spread = part.memory, part.deployment
    held = float(memory.cache_tokens) / spread.dp
    # the fullest stage of a pipeline holds more layers than the mean one
    depth, stages = question.architecture.depth, int(spread.pp)
    held *= depth / stages / math.ceil(depth / stages)
    return Pool(
        name=name,
        role=role,
        precision_weights=server.precision_weights,
        precision_kv=server.precision_kv,
        model=model,
        per_node=question.machine.node.accelerators.count,
        **{size: int(getattr(spread, size)) for size in ("tp", "pp", "dp", "ep")},
        replicas=part.replicas,
        max_num_seqs=part.max_num_seqs,
        # engines limit each of the batches that the stages of a pipeline have under way, a plan all of them
        max_num_batched_tokens=math.ceil(part.max_num_batched_tokens / stages),
        max_model_len=model_length(role, question, int(held), missing),
        cache_bytes=int(memory.cache),
        cache_tokens=int(held),
        weights=float(memory.weights),
        workspace=float(memory.workspace),
        context=float(memory.context),
        device=float(question.machine.accelerator.memory.capacity),
        places=places,
    )


def model_length(role: str, question: ServeScenario, held: int, missing: list[str]) -> int:
    """Return the tokens of the longest request that a pool takes.

    Parameters
    ----------
    role : str
        The pool's; one for prompts makes one token.
    question : ServeScenario
        What was asked.
    held : int
        Tokens that the cache holds: an engine does not start whose requests could be longer.
    missing : list of str
        Gets what is left out.
    """
    whole, ends = longest(role, question)
    most = held // BLOCK_TOKENS * BLOCK_TOKENS or held
    positions = question.architecture.max_positions
    length = min(whole, most, positions or whole)
    if not ends:
        missing.append(f"lengths without end: requests of more than {length} tokens, under 1 in 5,000, are refused")
    if length < whole:
        limit = "the cache of an instance holds" if most == length else "the model has positions for"
        missing.append(f"requests of up to {whole} tokens: {limit} {length}; longer ones are refused")
    return length


def longest(role: str, question: ServeScenario) -> tuple[int, bool]:
    """Return the tokens of the longest request of a pool, and whether there is none longer.

    Notes
    -----
    Of log-normal lengths the quantiles that `LONGER` of the prompts and of the answers exceed.
    """
    lengths, recorded = question.question.workload.lengths, question.recorded
    if recorded is not None:
        answers = 1 if role == "prefill" else recorded.output_tokens
        return math.ceil(float((recorded.prompt_tokens + answers).max())), True
    if isinstance(lengths, ServeHistogram):
        return max(math.ceil(one.isl + (1 if role == "prefill" else one.osl)) for one in lengths.histogram), True
    assert isinstance(lengths, ServeLengths)
    deviations = NormalDist().inv_cdf(1 - LONGER)
    parts = [(lengths.isl, lengths.isl_cv), (1.0, 0.0) if role == "prefill" else (lengths.osl, lengths.osl_cv)]
    whole = 0
    for mean, cv in parts:
        sigma = math.sqrt(math.log1p(cv**2))
        whole += math.ceil(mean * math.exp(sigma * deviations - sigma**2 / 2) if cv else mean)
    return whole, not any(cv for _, cv in parts)


def other_engine(serving: Serving, name: str) -> Iterable[str]:
    """Say that another engine's constants made the prediction."""
    if serving.engine.name != name:
        yield (
            f"engine {serving.engine.name}: its scheduling and host times made the prediction; "
            f"--set engine={name} predicts this launch"
        )


QUANTISED = {
    "fp8": "fp8, a scale for each tensor or channel",
    "fp8_block": "fp8, a scale for each block of 128 x 128",
    "int8": "int8, activations too (W8A8)",
    "fp4": "fp4, activations too",
    "nvfp4": "nvfp4, activations too",
    "int8_wo": "int8, activations in 16 bits",
    "int4_wo": "int4 (AWQ or GPTQ), activations in 16 bits",
}
"""Precision of weights -> what the checkpoint holds."""


def model_lines(serving: Serving, *, online: Iterable[str] = ()) -> list[str]:
    """Return lines that name the weights.

    Parameters
    ----------
    online : iterable of str
        Precisions that the engine makes of 16-bit weights while it loads them.
    """
    lines = []
    for name, kept in {pool.model: pool.precision_weights for pool in serving.pools}.items():
        if serving.checkpoint and (kept not in QUANTISED or kept in online):
            lines.append(f"{name}=${{{name}:-{serving.checkpoint}}}")
            continue
        form = "weights in 16 bits" if kept not in QUANTISED else f"weights in {QUANTISED[kept]}"
        lines.append(f': "${{{name}:?path or repository of a checkpoint with {form}}}"')
    return lines


def script(
    serving: Serving,
    release: str,
    missing: Sequence[str],
    *,
    comments: Iterable[str] = (),
    before: Iterable[str],
    commands: Mapping[int, Iterable[str]],
) -> Launch:
    """Write the script that starts a deployment.

    Parameters
    ----------
    serving : Serving
        The deployment.
    release : str
        Engine and version whose names are used.
    missing : sequence of str
        What the engine cannot express.
    comments : iterable of str
        What else to say first.
    before : iterable of str
        Lines for every node, as they are.
    commands : mapping of int to iterable of str
        Node -> commands that run side by side on it, as of `command`.

    Returns
    -------
    Launch
        The script.
    """
    said = tuple(dict.fromkeys(" ".join(text.split()) for text in (*serving.missing, *missing)))
    heads = [*serving.summary, f"names as of {release}", *comments]
    if serving.spread:
        kinds = ", then ".join(f"{count} x {name}" for name, count in serving.nodes)
        heads.append(
            f"run it on every node, with HOSTS, the addresses of all ({kinds}), and NODE_RANK, its place there"
        )
    if sum(pool.replicas for pool in serving.pools) > 1:
        shares = " in their shares" if serving.plan.get("groups") else ""
        heads.append(f"instances need a router in front; the prediction deals requests out at random{shares}")
    # a name may hold a line feed, which would end the comment
    lines = ["#!/usr/bin/env bash"]
    lines += ["# " + "".join(sign if sign.isprintable() else " " for sign in text) for text in heads]
    lines += [f"# not expressible: {text}" for text in said]
    lines.append("set -eu")
    if serving.spread:
        lines += [': "${HOSTS:?addresses of the nodes}" "${NODE_RANK:?place of this node, from 0}"']
        lines.append('read -ra HOST <<< "$HOSTS"')
    lines += before
    if serving.spread:
        lines.append('case "$NODE_RANK" in')
        for node, given in sorted(commands.items()):
            lines += [f"{node})", *(f"{one} &" for one in given), ";;"]
        lines.append("esac")
    else:
        lines += [f"{one} &" for given in commands.values() for one in given]
    return Launch("\n".join([*lines, "wait"]) + "\n", said)


def command(environment: Iterable[str], groups: Iterable[Sequence[str]]) -> str:
    """Return a command in lines; the caller of the script may add arguments.

    Parameters
    ----------
    environment : iterable of str
        Variables to set for it, as they are.
    groups : iterable of sequence of str
        Its words, as of `cli.emit.run.script`.
    """
    rows = command_rows([*groups, ("$@",)])
    return " \\\n  ".join([" ".join([*environment, rows[0]]), *rows[1:]])


def visible(place: Place) -> str:
    """Return the variable that shows a process its accelerators."""
    return "CUDA_VISIBLE_DEVICES=" + ",".join(map(str, place.accelerators))


def address(serving: Serving, node: int) -> str:
    """Return a node's address, for the shell."""
    return f"${{HOST[{node}]}}" if serving.spread else "127.0.0.1"


def fraction_up(value: float) -> str:
    """Write a share in four digits, no smaller than it is."""
    return f"{math.ceil(value * 1e4 - 1e-6) / 1e4:.4f}"
