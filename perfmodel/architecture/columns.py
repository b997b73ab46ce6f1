"""The model behind a row of measurements, of which a table states a name and a few sizes."""

from dataclasses import replace

from hardware.faults import Fault, InputError
from hardware.yaml_source import Source, validated
from perfmodel.architecture.catalogue import bundled_architecture
from perfmodel.architecture.coverage import ModelNotCovered, not_covered_name
from perfmodel.architecture.description import ModelDescription, from_description
from perfmodel.architecture.shapes import Architecture

_MOST_PADDING = 1.02


def from_columns(
    name: str,
    layers: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn: int | None = None,
    vocab: int | None = None,
    seq_len: int | None = None,
    experts: int | None = None,
    topk: int | None = None,
    moe_ffn: int | None = None,
) -> Architecture:
    """Find or build the architecture of a measured run.

    Parameters
    ----------
    name
        Name of the model; a remark in parentheses after it is left out if the whole is not a name.
    layers, hidden, heads, kv_heads, ffn, vocab, seq_len, experts, topk, moe_ffn
        Columns of the table [1]; None = blank.

    Returns
    -------
    Architecture
        The bundled model of that name, if the columns that are given agree with it; else one built from them.

    Raises
    ------
    ModelNotCovered
        The model is of a kind that is not modelled, is unknown while its columns are blank, or has columns that
        contradict each other; with the reason.

    Notes
    -----
    A bundled model agrees if layers, hidden size, heads, experts and, of a dense model, the inner width are the same
    and the token table has as many rows or up to 2 % more: padding, which is kept.

    Built from columns, a dense model of inner width ``4 hidden`` is of the GPT-2 kind: no gate, biases, layer
    normalisation, output projection tied to the token table, `seq_len` learned positions. Any other is of the Llama
    kind: gated, no biases, root-mean-square normalisation, rotary positions, untied; with experts in every layer if
    the table has any. Key and value heads left blank are as many as heads.
    """
    reason = not_covered_name(name)
    if reason:
        raise _not_covered(name, reason)
    bundled = bundled_architecture(name) or bundled_architecture(name.partition("(")[0])
    if bundled and _agrees(bundled, layers, hidden, heads, kv_heads, ffn, vocab, experts):
        return replace(bundled, vocab=vocab or bundled.vocab)
    if not (layers and hidden and heads and vocab and (moe_ffn or ffn)) or (experts and not topk):
        raise _not_covered(name, "not among the bundled models, and its columns are blank")
    plain = ffn == 4 * hidden and not experts
    if plain and not seq_len:
        raise _not_covered(name, "not among the bundled models, and seq_len, the number of its positions, is blank")
    sizes = {
        "name": name,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn": ffn,
        "vocab": vocab,
        "gated": not plain,
        "experts": experts or 0,
        "experts_per_token": (topk or 0) if experts else 0,
        "expert_width": moe_ffn if experts else None,
        "tied_embeddings": plain,
        "learned_positions": seq_len if plain else 0,
        "norm": "layernorm" if plain else "rmsnorm",
        "bias": plain,
        "source": "columns of a table",
    }
    try:
        return from_description(validated(ModelDescription, Source(name, sizes)))
    except InputError as error:
        found = "; ".join(f"{fault.key} {fault.message}" for fault in error.faults)
        raise _not_covered(name, f"its columns do not make an architecture: {found}") from None


def _agrees(
    bundled: Architecture,
    layers: int | None,
    hidden: int | None,
    heads: int | None,
    kv_heads: int | None,
    ffn: int | None,
    vocab: int | None,
    experts: int | None,
) -> bool:
    last = bundled.layers[-1]
    dense = not last.feed_forward.experts
    pairs = (
        (layers, bundled.depth),
        (hidden, bundled.hidden),
        (heads, last.attention.heads),
        (kv_heads, last.attention.kv_heads),
        (experts, last.feed_forward.experts),
        (ffn if dense else None, last.feed_forward.width),
    )
    same = all(given is None or given == known for given, known in pairs)
    return same and (vocab is None or bundled.vocab <= vocab <= _MOST_PADDING * bundled.vocab)


def _not_covered(name: str, reason: str) -> ModelNotCovered:
    return ModelNotCovered(Fault("", 0, 0, "model", f'"{name}": {reason}'))
