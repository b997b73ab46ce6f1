import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from perfmodel.kernels import decode, prefill
from perfmodel.kernels.library import families, parameters_of
from perfmodel.kernels.model import device_of

H100 = device_of(find("accelerator", "h100-80gb-sxm"))
PREFILL = parameters_of(prefill.MODEL, find("accelerator", "h100-80gb-sxm"), "bf16").parameters
DECODE = parameters_of(decode.MODEL, find("accelerator", "h100-80gb-sxm"), "bf16").parameters


def prefill_shapes(**values):
    given = {
        "sequences": 1.0,
        "new_tokens": 1024.0,
        "cached_tokens": 0.0,
        "heads": 32.0,
        "kv_heads": 8.0,
        "key_dim": 128.0,
        "value_dim": 128.0,
        "window": 0,
        "query_bytes": 2.0,
        "cache_bytes": 2.0,
        "warm": False,
    }
    return {name: np.asarray(value) for name, value in (given | values).items()}


def decode_shapes(**values):
    given = {
        "sequences": 64.0,
        "kv_len": 1024.0,
        "heads": 32.0,
        "kv_heads": 8.0,
        "key_dim": 128.0,
        "value_dim": 128.0,
        "latent": False,
        "window": 0,
        "block_size": 1,
        "query_bytes": 2.0,
        "cache_bytes": 2.0,
        "warm": False,
    }
    return {name: np.asarray(value) for name, value in (given | values).items()}


@given(new=st.integers(1, 3000), cached=st.integers(0, 3000), window=st.sampled_from([0, 1, 128, 500, 1024, 5000]))
def test_tiles_equal_their_enumeration(new, cached, window):
    rows = -(-new // 128)
    before = -(-cached // 128)
    limit = -(-window // 128) + 1 if window else rows + before
    lengths = [min(before + row, limit) for row in range(1, rows + 1)]
    tiles, longest = prefill.tile_counts(prefill_shapes(new_tokens=new, cached_tokens=cached, window=window))
    assert float(tiles) == sum(lengths)
    assert float(longest) == max(lengths)


def test_shipped_families_are_valid():
    assert {"hopper", "ampere"} <= set(families(prefill.MODEL))
    assert {"hopper", "ampere"} <= set(families(decode.MODEL))
