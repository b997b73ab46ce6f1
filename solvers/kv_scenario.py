"""The question where the state of serving lives, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.kv.plan(solvers.kv_scenario.load_kv(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from hardware.catalogue import Machine, description, read_file, resolve_cluster
from hardware.faults import Fault, InputError, collected
from hardware.schema import Node
from hardware.tiers import HBM, NICS, TierPath, tier_paths
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.hit_curves import DEPTHS, HitCurve, replay, stated
from perfmodel.kernels import gemm
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.offload import Form, Offload, SharedPrefix
from perfmodel.operators import peak_flops
from perfmodel.request_traces import block_pieces
from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.server import CACHE_BYTES, PRECISIONS, server
from perfmodel.tier_costs import device_usd_per_hour
from solvers.kv_question import KvQuestion

_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class KvScenario:
    """A checked question about placement over tiers.

    Parameters
    ----------
    question : KvQuestion
        As asked.
    machine, architecture, engine
        What it names.
    paths : tuple of TierPath
        Tiers that may be used, beside the accelerators' own memory.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    warnings : tuple of Fault
        What may not be meant as it stands.
    curve : HitCurve or None
        What caches find of the trace of shared prefixes.
    """

    question: KvQuestion
    machine: Machine
    architecture: Architecture
    engine: Engine
    paths: tuple[TierPath, ...]
    source: Source
    resolved: dict[str, Any]
    warnings: tuple[Fault, ...]
    curve: HitCurve | None = None

    def offload(
        self,
        gpu_batch: int,
        num_batches: int,
        precision_weights: str,
        precision_kv: str,
        *,
        form: Form = Form(),  # noqa: B008
        together: bool = True,
    ) -> Offload:
        """Return the question for one block; `together`: what its sequences share is computed and held once."""
        found = server(
            self.architecture,
            self.machine,
            self.engine,
            precision_weights=precision_weights,
            precision_kv=precision_kv,
        )
        lengths = self.question.workload.lengths
        count = self.machine.node.accelerators.count
        group = self.question.workload.shared_prefix if together else None
        shared = None if group is None else SharedPrefix(group.tokens, group.requests)
        arrivals, nodes = self.question.workload.arrivals, self.question.nodes
        rate = None if isinstance(arrivals, str) else arrivals.rate_rps / nodes
        return Offload(
            found,
            self.paths,
            count,
            lengths.isl,
            lengths.osl,
            gpu_batch,
            num_batches,
            form,
            shared,
            rate=rate,
            nodes=nodes,
        )


def load_kv(source: Source, base_dir: FilePath) -> KvScenario:
    """Check a scenario of placement over tiers.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    KvScenario
        The question with everything it names looked up.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    question = validated(KvQuestion, source)
    faults: list[Fault] = []
    machine: Machine | None = None
    architecture: Architecture | None = None
    with collected(faults):
        machine = resolve_cluster(question.cluster, base_dir, question.nodes, source=source, at=("cluster",))
    with collected(faults):
        architecture = load_architecture(question.model, base_dir, source, ("model",))
    engine = engine_of(question.engine)
    if engine is None:
        message = f"unknown engine; {did_you_mean(question.engine, engines())} [got {question.engine!r}]"
        faults.append(source.fault(("engine",), message))
    warnings: list[Fault] = []
    if machine is not None:
        wrongs = [*_tier_faults(question, machine), *_precision_faults(question, machine)]
        wrongs += _cost_faults(question, machine)
        faults += [source.fault(path, message) for path, message in wrongs]
    if architecture is not None:
        lengths = question.workload.lengths
        if architecture.learned_positions and lengths.isl + lengths.osl > architecture.learned_positions:
            message = f"{architecture.name} has {architecture.learned_positions} learned positions"
            faults.append(source.fault(("workload", "lengths"), f"{message} [got {lengths.isl + lengths.osl} tokens]"))
        wrong = kv_bytes_fault(architecture, question)
        if wrong is not None:
            (faults if wrong[0] else warnings).append(source.fault(("workload", "kv_bytes_per_token"), wrong[1]))
    faults += [source.fault(path, message) for path, message in _reuse_faults(question)]
    curve: HitCurve | None = None
    reuse = question.workload.reuse
    if reuse is not None and reuse.trace is not None:
        with collected(faults):
            curve = replay(block_pieces(base_dir / reuse.trace), reuse.block_tokens)
    elif reuse is not None and reuse.hit_ratio is not None and reuse.working_set is not None and architecture:
        each = float(kv_bytes_per_token(architecture, CACHE_BYTES[question.search.precision_kv[0]]))
        blocks = max(round(reuse.working_set / (each * reuse.block_tokens)), 1)
        curve = stated(reuse.hit_ratio, blocks, reuse.block_tokens)
    if faults or machine is None or architecture is None or engine is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))
    wanted = question.search.tiers
    paths = tuple(path for path in paths_of(machine.node, question.nodes) if wanted is None or path.name in wanted)
    resolved = _resolved(question, base_dir, machine)
    return KvScenario(question, machine, architecture, engine, paths, source, resolved, tuple(warnings), curve)


def paths_of(node: Node, nodes: int) -> tuple[TierPath, ...]:
    """Return the paths of a node's tiers, with its share of the pools that all nodes reach through their adapters."""
    found = []
    for path in tier_paths(node):
        if path.tier.link == NICS:
            own, link = path.domains[0], path.domains[1:]
            shared = replace(own, up=own.up / nodes, down=own.down / nodes)
            path = replace(path, capacity_bytes=path.capacity_bytes / nodes, domains=(shared, *link))
        found.append(path)
    return tuple(found)


def kv_bytes_fault(architecture: Architecture, question: KvQuestion) -> tuple[bool, str] | None:
    """Return whether given bytes of keys and values are wrong, or only differ, and what is said of them.

    Notes
    -----
    The common error is to count a latent cache (MLA) as if keys and values of every head were kept.
    """
    given = question.workload.kv_bytes_per_token
    if given is None:
        return None
    element = CACHE_BYTES[question.search.precision_kv[0]]
    true = float(kv_bytes_per_token(architecture, element))
    if abs(given - true) <= 0.01 * true:
        return None
    latent = any(layer.attention.kind == "mla" for layer in architecture.layers)
    if latent and given > 2 * true:
        message = (
            f"counts keys and values of every head, but {architecture.name} keeps one latent vector and one rotary key "
            f"(MLA): {true:,.0f} bytes a token [got {given:,.0f}]"
        )
        return True, message
    return False, f"{architecture.name} keeps {true:,.0f} bytes a token, which is used [got {given:,.0f}]"


def _precision_faults(question: KvQuestion, machine: Machine) -> Iterable[tuple[_Path, str]]:
    """Yield types of weights that the accelerator has no arithmetic for."""
    places: list[tuple[_Path, str]] = [
        (("search", "precision_weights", number), name) for number, name in enumerate(question.search.precision_weights)
    ]
    if question.plan is not None:
        places.append((("plan", "precision_weights"), question.plan.precision_weights))
    for path, precision in places:
        try:
            peak_flops(machine.accelerator, gemm.FORMS[PRECISIONS[precision]].arithmetic)
        except ValueError as error:
            yield path, f"{error} [got {precision!r}]"


def _reuse_faults(question: KvQuestion) -> Iterable[tuple[_Path, str]]:
    """Yield what contradicts itself about prefixes that are shared."""
    reuse, shared = question.workload.reuse, question.workload.shared_prefix
    isl = question.workload.lengths.isl
    if shared is not None and reuse is not None:
        yield ("workload", "shared_prefix"), "either this or reuse: both count the tokens that requests share"
    if reuse is not None and (reuse.trace is None) == (reuse.hit_ratio is None or reuse.working_set is None):
        yield ("workload", "reuse"), "needs either a trace, or hit_ratio and working_set"
    if shared is not None and shared.tokens >= isl:
        yield ("workload", "shared_prefix", "tokens"), f"should be fewer than a prompt's {isl} [got {shared.tokens}]"
    levels = {} if reuse is None else reuse.levels
    wanted: list[tuple[_Path, str]] = [
        (("search", "levels", number), name) for number, name in enumerate(question.search.levels or ())
    ]
    given = question.plan
    if given is not None and given.level is not None:
        wanted.append((("plan", "level"), given.level))
    for path, name in wanted:
        if name not in levels:
            yield path, f"no such level; {did_you_mean(name, levels) if levels else 'workload.reuse names none'}"
    anywhere = "anywhere" in question.search.reuse or (given is not None and given.reuse == "anywhere")
    if reuse is not None and anywhere and reuse.recomputed is None:
        yield ("workload", "reuse", "recomputed"), "missing; blocks that count anywhere need a share computed again"
    if given is not None and reuse is None and given.cache:
        yield ("plan", "cache"), "workload.reuse is missing: nothing is known of what requests share"
    for name, parts in ({} if given is None else given.loaded or {}).items():
        if len(parts) != DEPTHS:
            yield ("plan", "loaded", name), f"should be {DEPTHS} shares, by part of the prompts [got {len(parts)}]"


def _cost_faults(question: KvQuestion, machine: Machine) -> Iterable[tuple[_Path, str]]:
    """Yield what keeps a question from having a cheapest answer."""
    tiers = {tier.name: tier for tier in machine.node.tiers}
    for key, named in (("search", question.search.devices), ("plan", question.plan and question.plan.devices)):
        for name in named or ():
            if name not in tiers:
                yield (key, "devices", name), f"no such tier; {did_you_mean(name, list(tiers))}"
    if question.objective != "cost_usd_per_hour":
        return
    for name, tier in tiers.items():
        allowed = question.search.tiers is None or name in question.search.tiers
        if allowed and device_usd_per_hour(tier, question.usd_per_kwh) == 0:
            yield ("cluster",), f"tiers.{name}.price: missing; cost_usd_per_hour needs what a device costs"
    slo = question.slo
    if isinstance(question.workload.arrivals, str) and not (slo.ttft_mean or slo.tpot_mean or slo.tokens_per_s):
        yield ("slo",), "missing; the cheapest is nothing at all where nothing is asked of it"


def _tier_faults(question: KvQuestion, machine: Machine) -> Iterable[tuple[_Path, str]]:
    known = [HBM, *(tier.name for tier in machine.node.tiers)]
    for number, name in enumerate(question.search.tiers or ()):
        if name not in known:
            yield ("search", "tiers", number), f"no such tier; {did_you_mean(name, known)} [got {name!r}]"
    if question.search.tiers is not None and HBM not in question.search.tiers:
        yield ("search", "tiers"), f"{HBM} is missing: a layer is computed from there"
    allowed = [name for name in known if question.search.tiers is None or name in question.search.tiers]
    for tier in machine.node.tiers:
        if tier.name in allowed and tier.via is not None and tier.via not in allowed:
            yield ("search", "tiers"), f"{tier.name} is reached via {tier.via}, which is not among them"
    if question.plan is None:
        return
    for thing in ("weights", "kv", "activations"):
        if thing not in question.plan.placement:
            yield ("plan", "placement"), f"{thing} is missing"
    for thing, shares in question.plan.placement.items():
        for name in shares:
            if name not in allowed:
                yield ("plan", "placement", thing, name), f"no such tier; {did_you_mean(name, allowed)}"
        if abs(sum(shares.values()) - 1) > 1e-6:
            yield ("plan", "placement", thing), f"shares should add up to 1 [got {sum(shares.values()):g}]"
    for key, named in (("cache", question.plan.cache), ("loaded", question.plan.loaded or {})):
        for name in named:
            if name not in allowed:
                yield ("plan", key, name), f"no such tier; {did_you_mean(name, allowed)}"
    sites = {path.name for path in tier_paths(machine.node) if path.site is not None}
    for name, share in (question.plan.attention_there or {}).items():
        if name not in allowed:
            yield ("plan", "attention_there", name), f"no such tier; {did_you_mean(name, allowed)}"
        elif share and name not in sites:
            yield ("plan", "attention_there", name), "no processor attends there; set attention of the tier"


def _resolved(question: KvQuestion, base_dir: FilePath, machine: Machine) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    written["cluster"] = description(machine)
    if question.workload.reuse is not None and question.workload.reuse.trace is not None:
        written["workload"]["reuse"]["trace"] = str(base_dir.resolve() / question.workload.reuse.trace)
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        path = base_dir / question.model
        written["model"] = read_file(path / "config.json" if path.is_dir() else path).data
    return written


def kv_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario of placement over tiers."""
    return KvQuestion.model_json_schema()
