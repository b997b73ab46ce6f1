"""Arguments of Megatron-LM that describe the model."""

from collections.abc import Callable, Sequence

from cli.emit.run import Run, options, periodic
from perfmodel.architecture import Architecture, Attention, LayerGroup


def model_options(run: Run, missing: list[str]) -> Sequence[str]:
    """Return the arguments of Megatron-LM that describe a run's model.

    Parameters
    ----------
    run : Run
        The run.
    missing : list of str
        Where to add what they cannot express.

    Returns
    -------
    sequence of str
        Words.
    """
    return options(
        _sizes(run, missing)
        | _attention(run, missing)
        | _feed_forward(run.architecture, missing)
        | _mixture(run, missing)
    )


def _sizes(run: Run, missing: list[str]) -> dict[str, object]:
    model = run.architecture
    if model.embedding_norm_parameters:
        missing.append("model: its norm after the embedding")
    if model.output_bias:
        missing.append("model: the bias of its output projection")
    if any(group.norm_parameters != _norm_parameters(model, group.attention) for group in model.layers):
        missing.append(
            "model: its norms; a layer gets one before attention and one before the rest, layer norms with bias"
        )
    if model.position == "alibi":
        missing.append("model: its positions (ALiBi)")
    if model.mtp_layers and model.position not in ("rope", "none"):
        missing.append("model: multi-token prediction without rotary positions")
    known = {"rope": "rope", "learned": "learned_absolute"}
    return {
        "--num-layers": model.depth,
        "--hidden-size": model.hidden,
        "--vocab-size": model.vocab,
        "--make-vocab-size-divisible-by": 1,
        "--max-position-embeddings": model.learned_positions or max(model.max_positions, run.workload["seq_len"]),
        "--position-embedding-type": known.get(model.position, "none"),
        "--normalization": {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.norm],
        "--untie-embeddings-and-output-weights": not model.tied_embeddings,
        "--mtp-num-layers": model.mtp_layers or None,
    }


def _norm_parameters(model: Architecture, attention: Attention) -> int:
    """Parameters of the norms that Megatron-LM gives a layer, those of queries, keys and latent vectors included."""
    each = 2 if model.norm == "layernorm" else 1
    inner = attention.q_lora_rank + attention.kv_lora_rank
    return each * (2 * model.hidden + (2 * attention.head_dim if attention.qk_norm else inner))


def _attention(run: Run, missing: list[str]) -> dict[str, object]:
    model, tp = run.architecture, run.plan["tp"]
    attention = model.layers[0].attention
    if attention.kind != "mla" and attention.kv_heads % tp:
        missing.append(f"tp {tp}: it must divide the {attention.kv_heads} key and value heads")
    values: dict[str, object] = {"--num-attention-heads": attention.heads}
    if attention.kind == "mla":
        values |= {
            "--multi-latent-attention": True,
            "--q-lora-rank": attention.q_lora_rank or None,
            "--kv-lora-rank": attention.kv_lora_rank,
            "--qk-head-dim": attention.head_dim,
            "--qk-pos-emb-head-dim": attention.rope_head_dim,
            "--v-head-dim": attention.v_head_dim,
            "--qk-layernorm": True,  # of the latent vectors
        }
    else:
        grouped = attention.kv_heads != attention.heads
        values |= {
            "--kv-channels": attention.head_dim,
            "--group-query-attention": grouped,
            "--num-query-groups": attention.kv_heads if grouped else None,
            "--qk-layernorm": attention.qk_norm,
        }
    values["--softmax-type"] = "learnable" if attention.sinks else None
    return values | _biases(model, missing) | _window(model, missing)


def _biases(model: Architecture, missing: list[str]) -> dict[str, object]:
    attention, feed_forward = model.layers[0].attention, model.layers[-1].feed_forward
    qkv, others = attention.bias_qkv, (attention.bias_out, feed_forward.bias)
    if len(set(others)) > 1 or (all(others) and not qkv):
        missing.append("model: biases of some projections only")
    every = all(others)
    return {"--disable-bias-linear": not every, "--add-qkv-bias": qkv and not every}


def _window(model: Architecture, missing: list[str]) -> dict[str, object]:
    windows = {group.attention.window for group in model.layers} - {0}
    if not windows:
        return {}
    full = _count(model, lambda group: not group.attention.window)
    period = periodic(model.depth, full)
    if len(windows) > 1 or (full and (model.leading or period is None)):
        missing.append("model: which of its layers see a window only")
    # a window counts the query itself, which Megatron-LM's left half does not
    return {"--window-size": f"{max(windows) - 1},0", "--window-attn-skip-freq": period if full else None}


def _count(model: Architecture, has: Callable[[LayerGroup], bool]) -> int:
    return sum(group.count for group in model.layers if has(group))


def _feed_forward(model: Architecture, missing: list[str]) -> dict[str, object]:
    widths = {group.feed_forward.width for group in model.layers} - {0}
    if len(widths) > 1:
        missing.append(f"model: feed-forward parts of the widths {', '.join(map(str, sorted(widths)))}")
    last = model.layers[-1].feed_forward
    return {"--ffn-hidden-size": max(widths, default=last.expert_width), "--swiglu": last.gated}


def _mixture(run: Run, missing: list[str]) -> dict[str, object]:
    model, plan = run.architecture, run.plan
    mixtures = {group.feed_forward for group in model.layers if group.feed_forward.experts}
    if not mixtures:
        return {}
    part = next(iter(mixtures))
    if len(mixtures) > 1:
        missing.append("model: unlike mixtures of experts")
    precision = run.workload["precision"]
    if precision == "fp16" and plan["ep"] > 1:
        missing.append(f"ep {plan['ep']} in fp16: experts are spread in bf16 only")
    missing.append(
        "even load of the experts, as predicted; --moe-router-force-load-balancing makes it so in a trial, "
        "--moe-aux-loss-coeff in training"
    )
    # a token that crosses the network once for every node it visits takes the dispatcher that copies it there
    once = run.framework.expert_dispatch == "per-node" and plan["ep"] > run.ranks_per_node
    aside = part.router_bias and not part.bias  # the score correction of DeepSeek-V3, not a bias of the projection
    return {
        "--num-experts": part.experts,
        "--expert-tensor-parallel-size": 1,
        "--moe-layer-freq": _layer_pattern(model, missing),
        "--moe-ffn-hidden-size": part.expert_width,
        "--moe-shared-expert-intermediate-size": part.shared_width or None,
        "--moe-router-topk": part.experts_per_token,
        "--moe-router-dtype": "fp32",
        "--moe-router-score-function": "sigmoid" if aside else "softmax",
        "--moe-router-enable-expert-bias": aside,
        "--moe-router-pre-softmax": part.experts_per_token == 1 and not aside,
        "--moe-grouped-gemm": precision not in ("fp16", "fp32"),
        "--moe-token-dispatcher-type": "flex" if once else "alltoall",
        "--moe-enable-deepep": once,
    }


def _layer_pattern(model: Architecture, missing: list[str]) -> object:
    """Return which layers hold experts: one in so many, or a list of zeros and ones."""
    count = _count(model, lambda group: group.feed_forward.experts > 0)
    dense = model.depth - count
    if not dense:
        return 1
    if model.leading == dense and not model.layers[0].feed_forward.experts:
        return f"([0]*{dense}+[1]*{count})"
    step = next((step for step in range(2, model.depth + 1) if -(-model.depth // step) == count), None)
    if model.leading or step is None:
        missing.append(f"model: which {count} of its {model.depth} layers hold experts")
    return step
