"""Model sizes against what their makers published, and what is said of a configuration that is wrong."""

import importlib
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perfmodel
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from perfmodel.architecture import (
    MODEL_TYPES,
    Architecture,
    ModelDescription,
    ModelNotCovered,
    architecture_names,
    attention_flops_per_token,
    bundled_architecture,
    from_columns,
    from_config,
    from_description,
    json_schema,
    layer_parameters,
    load_architecture,
    model_flops_per_token,
    trainable,
)

MODELS = Path(perfmodel.__file__).parent / "models"
DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "training"
HERE = Path()

# Totals of the weight files of a model's repository on the Hugging Face hub (the "safetensors" counts of its page),
# where nothing else is said. Each is written out once more in the comment, from the shapes alone.
PUBLISHED = {
    # 32 (4 * 4096^2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    "llama-2-7b": 6_738_415_616,
    # 40 (4 * 5120^2 + 3 * 5120 * 13824 + 2 * 5120) + 2 * 32000 * 5120 + 5120
    "llama-2-13b": 13_015_864_320,
    # 80 (2.25 * 8192^2 + 3 * 8192 * 28672 + 2 * 8192) + 2 * 32000 * 8192 + 8192
    "llama-2-70b": 68_976_648_192,
    # 32 (2.5 * 4096^2 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 128256 * 4096 + 4096
    "llama-3.1-8b": 8_030_261_248,
    # 80 (2.25 * 8192^2 + 3 * 8192 * 28672 + 2 * 8192) + 2 * 128256 * 8192 + 8192
    "llama-3.1-70b": 70_553_706_496,
    # 126 (2.125 * 16384^2 + 3 * 16384 * 53248 + 2 * 16384) + 2 * 128256 * 16384 + 16384
    "llama-3.1-405b": 405_853_388_800,
    # 32 (2.5 * 4096^2 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    "mistral-7b": 7_241_732_096,
    # 32 (2.5 * 4096^2 + 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    "mixtral-8x7b": 46_702_792_704,
    # 56 (7/3 * 6144^2 + 8 * 3 * 6144 * 16384 + 8 * 6144 + 2 * 6144) + 2 * 32000 * 6144 + 6144
    "mixtral-8x22b": 140_620_634_112,
    # 28 (16/7 * 3584^2 + (3584 + 2 * 512) + 3 * 3584 * 18944 + 2 * 3584) + 2 * 152064 * 3584 + 3584
    "qwen2-7b": 7_615_616_512,
    # 80 (2.25 * 8192^2 + (8192 + 2 * 1024) + 3 * 8192 * 29568 + 2 * 8192) + 2 * 152064 * 8192 + 8192
    "qwen2.5-72b": 72_706_203_648,
    # 36 (2.5 * 4096^2 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128) + 2 * 151936 * 4096 + 4096
    "qwen3-8b": 8_190_735_360,
    # 64 (5120 * 128 * (64 + 2 * 8 + 64) + 3 * 5120 * 25600 + 2 * 5120 + 2 * 128) + 2 * 151936 * 5120 + 5120
    "qwen3-32b": 32_762_123_264,
    # 48 (2048 * 128 * (32 + 2 * 4 + 32) + 128 (3 * 2048 * 768 + 2048) + 2 * 2048 + 2 * 128) + 2 * 151936 * 2048 + 2048
    "qwen3-30b-a3b": 30_532_122_624,
    # 94 (4096 * 128 * (64 + 2 * 4 + 64) + 128 (3 * 4096 * 1536 + 4096) + 2 * 4096 + 2 * 128) + 2 * 151936 * 4096 + 4096
    "qwen3-235b-a22b": 235_093_634_560,
    # attention 5120 * 1536 + 1536 + 1536 * 128 * 192 + 5120 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 5120;
    # one layer of 3 * 5120 * 12288, 59 of 3 * 5120 * 1536 * (160 + 2) + 160 * 5120
    "deepseek-v2": 235_741_434_880,
    # openai.com, gpt-oss model card, table 1: 116.83 B and 20.91 B; sinks 64, biases 5120 + 2880 in attention
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    # 28 (4 * 3072 * 4096 + 3 * 3072 * 24576 + 2 * 3072) + 256000 * 3072 + 3072
    "gemma-7b": 8_537_680_896,
    # 42 (2 * 3584 * 256 * (16 + 8) + 3 * 3584 * 14336 + 4 * 3584) + 256000 * 3584 + 3584
    "gemma-2-9b": 9_241_705_984,
    # 12 (12 * 768^2 + 13 * 768) + (50257 + 1024) * 768 + 2 * 768
    "gpt-2": 124_439_808,
    # 48 (12 * 1600^2 + 13 * 1600) + (50257 + 1024) * 1600 + 2 * 1600
    "gpt-2-xl": 1_557_611_200,
    # Model card of EleutherAI/gpt-neox-20b, n_parameters: 44 (12 * 6144^2 + 13 * 6144) + 2 * 50432 * 6144 + 2 * 6144
    "gpt-neox-20b": 20_554_567_680,
    # Weight files on Hugging Face, as the organisation of each model publishes them.
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-4-scout": 107_769_861_120,  # without the image encoder
    "codellama-34b": 33_743_970_304,
    "deepseek-coder-33b": 33_342_991_360,
    "deepseek-v2-lite": 15_706_484_224,
    "yi-34b": 34_388_917_248,
    "solar-10.7b": 10_731_524_096,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mistral-large-2": 122_610_069_504,
    "qwen1.5-110b": 111_209_914_368,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-14b": 14_768_307_200,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,  # without the image encoder, here and below
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 4_424_832,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "olmo-2-7b": 7_298_617_344,
    # With the prediction module: a layer, its token table and output projection, a product that joins two vectors
    # (2 * 5120 * 5120) and three norms.
    "glm-4.5": 358_337_791_296 - 5_539_962_272,
    "falcon-40b": 41_303_293_952,
    "starcoder2-15b": 15_957_889_024,
    "dbrx": 131_596_523_520,
    "gpt-2-medium": 354_823_168,
    "gpt-2-large": 774_030_080,
    "opt-2.7b": 2_651_596_800,
    "opt-1.3b": 1_315_758_080,
    # 70 (12 * 14336^2 + 13 * 14336) + 250880 * 14336 + 4 * 14336
    "bloom-176b": 176_247_271_424,
    # Weight files of Qwen/Qwen3.5-397B-A17B, 403,397,928,944, without image encoder, 456,010,480, and the prediction
    # module, 6,595,568,128: 60 (512 * 3 * 4096 * 1024 + 512 * 4096 + 3 * 4096 * 1024 + 4096 + 2 * 4096)
    # + 45 (4096 (12288 + 8192 + 128) + 12288 * 4 + 128 + 128 + 8192 * 4096)
    # + 15 (4096 * 256 (2 * 32 + 2 * 2 + 32) + 2 * 256) + 2 * 248320 * 4096 + 4096
    "qwen3.5-397b-a17b": 403_397_928_944 - 456_010_480 - 6_595_568_128,
    # 32 (12 * 4096^2 + 2 * 4096) + 50432 * 4096 + 4096
    "mpt-7b": 6_649_286_656,
    # Card of EleutherAI/gpt-j-6b, n_parameters 6,053,381,344, which counts what each of the eight shards it was trained
    # in holds alike eight times (kingoflolz/mesh-transformer-jax, transformer_shard.py): the norms, the second bias of
    # the feed-forward part, and a bias of the token table that the weight files leave out.
    # 28 (12 * 4096^2 + 16384 + 3 * 4096) + 2 * 50400 * 4096 + 50400 + 2 * 4096
    "gptj-6b": 6_053_381_344 - 7 * (28 * 3 * 4096 + 2 * 4096) - 8 * 4096,
}

# Rounded figures, in 1e9, of papers and cards, and the last digit they state.
ROUNDED = {
    "gpt-3-175b": (174.6, 0.1),  # arXiv 2005.14165, table D.1: 174,600 M
    "megatron-1.7b": (1.7, 0.1),  # arXiv 2104.04473, table 1, here and below
    "megatron-3.6b": (3.6, 0.1),
    "megatron-7.5b": (7.5, 0.1),
    "megatron-18.4b": (18.4, 0.1),
    "megatron-39.1b": (39.1, 0.1),
    "megatron-76.1b": (76.1, 0.1),
    "megatron-145.6b": (145.6, 0.1),
    "megatron-310.1b": (310.1, 0.1),
    "megatron-530b": (529.6, 0.1),
    "megatron-1t": (1008.0, 0.1),
    "megatron-22b": (22, 1),  # arXiv 2205.05198, table 3
    "kimi-k2": (1026, 1),  # weight files of moonshotai/Kimi-K2-Instruct
    "kimi-k2.5": (1026, 1),  # built on Kimi-K2 (arXiv 2602.02276), the image encoder left out
    "minimax-m2.5": (228.7, 0.1),  # weight files of MiniMaxAI/MiniMax-M2.5: 229 B
    "internlm-20b": (20, 1),  # card of internlm/internlm-20b
    "deepseek-v3": (671, 1),  # README_WEIGHTS.md of deepseek-ai/DeepSeek-V3; to the unit below
    "deepseek-v3-without-mtp": (671, 1),
    "gemma-3-27b": (27, 1),  # arXiv 2503.19786, table 1; to the unit below
    "mpt-30b": (29.95, 0.02),  # card of mosaicml/mpt-30b, which cuts digits off
    "gpt-3-1.3b": (1.32, 0.01),  # arXiv 2005.14165, table D.1, here and below
    "gpt-3-2.7b": (2.65, 0.01),
    "gpt-3-6.7b": (6.66, 0.01),
    "gpt-3-13b": (12.85, 0.02),
    "nemotron-4-15b": (15.6, 0.1),  # arXiv 2402.16819, section 2
    "nemotron-4-340b": (341, 1),  # arXiv 2406.11704
    "llama-4-maverick": (400, 2),  # its card
    "glm-4.5-air": (106, 2),  # its card
    "granite-3.1-8b": (8.17, 0.01),  # its card
    "command-r-plus": (104, 1),  # its card
    "falcon-7b": (7, 1),  # their cards
    "falcon-180b": (180, 2),
    "moonlight-16b-a3b": (16, 1),  # arXiv 2502.16982
    "grok-1": (314, 4),  # its release; the count of the sizes is half a percent higher
    "opt-6.7b": (6.7, 2),
    "opt-13b": (13, 1),  # arXiv 2205.01068, table 1, here and below
    "opt-30b": (30, 1),
    "opt-66b": (66, 1),
    "opt-175b": (175, 1),
}


def load(name: str) -> Architecture:
    return load_architecture(name, HERE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_weights(name):
    assert load(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_round_to_the_published_figure(name):
    figure, digit = ROUNDED[name]
    assert abs(load(name).parameters / 1e9 - figure) <= digit / 2


def test_every_bundled_model_is_checked():
    assert set(architecture_names()) == set(PUBLISHED) | set(ROUNDED)


def test_parameters_of_deepseek_v3_with_its_prediction_module():
    # Weight files of deepseek-ai/DeepSeek-V3: 3,918,786,560 numbers in BF16 and 680,571,043,840 in FP8; the score
    # corrections of 58 + 1 layers with 256 experts are in FP32, as the scales of FP8 blocks, which are no parameters.
    # The files hold the token table and the output projection a second time for the prediction module.
    model = load("deepseek-v3")
    files = 3_918_786_560 + 680_571_043_840 + 59 * 256
    assert model.parameters + model.mtp_parameters + 2 * 129280 * 7168 == files
    assert load("deepseek-v3-without-mtp").parameters == model.parameters
    assert load("deepseek-v3-without-mtp").mtp_parameters == 0


def test_parameters_of_linear_attention():
    # Weight files of Qwen/Qwen3-Next-80B-A3B-Instruct: 81,324,862,720 with one prediction module, which its
    # configuration does not mention
    config = {
        "model_type": "qwen3_next",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "intermediate_size": 5120,
        "vocab_size": 151936,
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    model = from_config(config, "m")
    with_module = replace(model, mtp_layers=1)
    assert with_module.parameters + with_module.mtp_parameters == 81_324_862_720
    assert [(group.count, group.attention.kind) for group in model.layers] == [(36, "linear"), (12, "full")]
    listed = config | {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12}
    assert from_config(listed, "m") == model
    assert load("qwen3.5-397b-a17b").mtp_parameters == 6_595_568_128
    dense = {key: value for key, value in config.items() if "expert" not in key} | {"model_type": "qwen3_5_text"}
    assert layer_parameters(from_config(dense, "m").layers[0], 2048).dense_mlp == 3 * 2048 * 5120


def test_a_text_model_takes_from_the_whole_what_it_leaves_out():
    config = json.loads((MODELS / "qwen3.5-397b-a17b.json").read_text())
    tied = config.pop("tie_word_embeddings")
    for whole, expected in (({}, False), ({"tie_word_embeddings": True}, True), ({"tie_word_embeddings": tied}, tied)):
        model = from_config(whole | {"model_type": "qwen3_5_moe", "text_config": config}, "m")
        assert model.tied_embeddings is expected
    own = from_config({"tie_word_embeddings": True, "text_config": config | {"tie_word_embeddings": False}}, "m")
    assert own.tied_embeddings is False


def test_flops_of_linear_attention_do_not_grow_with_the_sequence():
    # three products with the state of 128 x 128 of each of 64 heads
    linear, full = load("qwen3.5-397b-a17b").layers
    assert attention_flops_per_token(linear, 1) == attention_flops_per_token(linear, 10**6) == 3 * 2 * 64 * 128**2
    assert attention_flops_per_token(full, 4096) == 2 * 32 * 512 * 2048


def test_parameters_of_gemma_3_beside_its_image_encoder():
    # Weight files of google/gemma-3-27b-it: 27,432,406,640, with a SigLIP encoder of 27 layers, width 1152, inner
    # width 4304, patches of 14^2 * 3, 64^2 positions and layer norms with biases, and a projection with its norm.
    layer = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    encoder = 27 * layer + (14**2 * 3 + 1) * 1152 + 64**2 * 1152 + 2 * 1152
    assert load("gemma-3-27b").parameters == 27_432_406_640 - encoder - (1152 * 5376 + 1152)


@pytest.mark.parametrize(
    ("name", "figure", "digit"),
    [
        ("mixtral-8x7b", 12.9, 0.1),  # mistral.ai/news/mixtral-of-experts
        ("mixtral-8x22b", 39, 1),  # mistral.ai/news/mixtral-8x22b
        ("qwen3.5-397b-a17b", 17, 1),  # card of Qwen/Qwen3.5-397B-A17B
        ("qwen3-235b-a22b", 22, 1),  # card of Qwen/Qwen3-235B-A22B
        ("qwen3-30b-a3b", 3.35, 0.1),  # card of Qwen/Qwen3-30B-A3B: 3.3, which may be cut off or rounded
        ("deepseek-v2", 21, 1),  # arXiv 2405.04434, abstract
    ],
)
def test_active_parameters(name, figure, digit):
    assert abs(load(name).active_parameters / 1e9 - figure) <= digit / 2


@pytest.mark.parametrize(
    ("name", "figure", "digit"),
    [
        ("gpt-oss-20b", 3.61, 0.01),  # gpt-oss model card, table 1
        ("gpt-oss-120b", 5.13, 0.01),
        ("deepseek-v3", 36.6, 0.1),  # README_WEIGHTS.md of DeepSeek-V3, as corrected later
        ("kimi-k2", 32, 1),  # card of moonshotai/Kimi-K2-Instruct
        ("kimi-k2.5", 32, 1),  # card of moonshotai/Kimi-K2.5
        ("minimax-m2.5", 10, 1),  # card of MiniMaxAI/MiniMax-M2
    ],
)
def test_active_parameters_of_those_who_leave_the_token_table_out(name, figure, digit):
    model = load(name)
    assert abs((model.active_parameters - model.embedding_parameters) / 1e9 - figure) <= digit / 2


@pytest.mark.parametrize(("name", "mlp", "attention"), [("gpt-oss-120b", 114.71, 0.96), ("gpt-oss-20b", 19.12, 0.64)])
def test_parts_of_a_layer(name, mlp, attention):
    # gpt-oss model card, table 1; embedding and unembedding 1.16
    model = load(name)
    parts = [(group.count, layer_parameters(group, model.hidden)) for group in model.layers]
    assert abs(sum(count * (part.routed + part.router) for count, part in parts) / 1e9 - mlp) <= 0.005
    assert abs(sum(count * part.attention for count, part in parts) / 1e9 - attention) <= 0.005
    assert abs((model.embedding_parameters + model.output_parameters) / 1e9 - 1.16) <= 0.005
    assert all(part.dense_mlp == part.shared == 0 for _, part in parts)


@pytest.mark.parametrize("name", [name for name in ROUNDED if name.startswith(("megatron", "gpt-3"))])
def test_parameters_by_the_closed_form_of_gpt(name):
    # arXiv 2104.04473, equation 2: P = 12 l h^2 (1 + 13 / 12 h + (V + s) / 12 l h), without the last layer norm
    model = load(name)
    L, h, V, s = model.depth, model.hidden, model.vocab, model.learned_positions
    assert model.parameters == 12 * L * h**2 + 13 * L * h + (V + s) * h + 2 * h


@pytest.mark.parametrize("name", ["megatron-1.7b", "megatron-22b", "gpt-3-175b", "megatron-1t"])
@pytest.mark.parametrize("s", [1, 2048, 8192])
def test_flops_by_the_closed_form_of_gpt(name, s):
    # arXiv 2205.05198, equation 7: 72 B s l h^2 (1 + s / 6 h + V / 12 l h) for a step, all tokens attending to all.
    # That is 12 l h s for the attention to one token; a causal mask leaves 6 l h s = 72 l h^2 s / 12 h.
    model = load(name)
    L, h, V = model.depth, model.hidden, model.vocab
    expected = 72 * L * h**2 * (1 + s / (12 * h) + V / (12 * L * h))
    assert math.isclose(model_flops_per_token(model, s), expected, rel_tol=1e-12)


def test_flops_as_in_palm():
    # arXiv 2204.02311, appendix B: 6 N + 12 L H Q T a token, half of the second term under a causal mask; N without
    # the token table and the norms. Llama-3.1-8B: L 32, H 32, Q 128.
    matrices = 8_030_261_248 - 128256 * 4096 - (2 * 32 + 1) * 4096
    assert model_flops_per_token(load("llama-3.1-8b"), 8192) == 6 * matrices + 6 * 32 * 32 * 128 * 8192


def test_flops_of_latent_attention_and_experts():
    # DeepSeek-V3 by hand, weights a token is multiplied by; arXiv 2412.19437, section 4.2
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    dense, experts = 3 * 7168 * 18432, 3 * 7168 * 2048 * (8 + 1) + 256 * 7168
    weights = 61 * attention + 3 * dense + 58 * experts + 129280 * 7168
    heads = 61 * 128 * (192 + 128) * 4096  # 2 FLOP, half the tokens
    without = load("deepseek-v3-without-mtp")
    assert model_flops_per_token(without, 4096) == 3 * (2 * weights + heads)
    module = 2 * (attention + experts + 2 * 7168**2 + 129280 * 7168) + 128 * (192 + 128) * 4096
    assert model_flops_per_token(load("deepseek-v3"), 4096) == 3 * (2 * weights + heads + module)


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_flops_of_a_window_are_those_of_the_pairs_it_lets_through(window, seq_len):
    # Counting pairs one by one gives the diagonal as well, half a token more than the continuous halving.
    group = load("llama-3.1-8b").layers[0]
    windowed = replace(group, attention=replace(group.attention, window=window))
    pairs = sum(min(index + 1, window) for index in range(seq_len))
    seen = attention_flops_per_token(windowed, seq_len) / (2 * 32 * 256)
    assert 0 <= pairs / seq_len - seen <= 0.5


def test_window_of_gemma_2():
    # 21 of 42 layers see 4096 tokens; at 8192 tokens that is 3072 on average, against 4096.
    groups = load("gemma-2-9b").layers
    assert [(group.count, group.attention.window) for group in groups] == [(21, 4096), (21, 0)]
    short, long = (attention_flops_per_token(group, 8192) for group in groups)
    assert short / long == 3072 / 4096


def test_a_norm_over_all_heads_and_a_shared_expert():
    # transformers, modeling_minimax_m2.py: the norms of queries and keys span all heads of each
    minimax = load("minimax-m2.5")
    assert minimax.layers[0].norm_parameters == 2 * 3072 + (48 + 8) * 128
    assert layer_parameters(minimax.layers[0], 3072).router == 256 * (3072 + 1)  # with the correction of the score
    config = json.loads((MODELS / "minimax-m2.5.json").read_text()) | {"shared_intermediate_size": 10}
    assert layer_parameters(from_config(config, "m").layers[0], 3072).shared == 3 * 3072 * 10


def test_biases_of_gpt_j():
    model = load("gptj-6b")
    layer = layer_parameters(model.layers[0], 4096)
    assert (layer.attention, layer.norms, layer.dense_mlp) == (4 * 4096**2, 2 * 4096, 8 * 4096**2 + 5 * 4096)
    assert model.output_parameters == 50400 * 4097


def test_layers_that_lead_and_layers_that_alternate():
    assert (load("deepseek-v3").leading, [g.count for g in load("deepseek-v3").layers]) == (3, [3, 58])
    assert (load("gpt-oss-120b").leading, [g.count for g in load("gpt-oss-120b").layers]) == (0, [18, 18])
    # arXiv 2503.19786, section 2: five local layers for each global one, starting with a local one
    gemma = load("gemma-3-27b")
    assert (gemma.leading, [(g.count, g.attention.window) for g in gemma.layers]) == (0, [(52, 1024), (10, 0)])
    assert load("llama-3.1-8b").leading == 0


MIXTURE = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def widths(model: Architecture) -> list[tuple[int, int, int]]:
    return [(group.count, group.feed_forward.width, group.feed_forward.experts) for group in model.layers]


def test_layers_without_experts():
    step = from_config(MIXTURE | {"decoder_sparse_step": 2}, "m")
    assert (step.leading, widths(step)) == (0, [(3, 128, 0), (3, 0, 4)])
    listed = from_config(MIXTURE | {"mlp_only_layers": [0, 1]}, "m")
    assert (listed.leading, widths(listed)) == (2, [(2, 128, 0), (4, 0, 4)])


def test_windows_as_a_configuration_lists_them():
    kinds = ["full_attention", "sliding_attention"] * 3
    model = from_config(MIXTURE | {"layer_types": kinds, "sliding_window": 8}, "m")
    assert [(group.count, group.attention.window) for group in model.layers] == [(3, 0), (3, 8)]
    tail = from_config(MIXTURE | {"use_sliding_window": True, "max_window_layers": 4, "sliding_window": 8}, "m")
    assert (tail.leading, [(g.count, g.attention.window) for g in tail.layers]) == (4, [(4, 0), (2, 8)])
    ignored = from_config(MIXTURE | {"use_sliding_window": False, "sliding_window": 8}, "m")
    assert [group.attention.window for group in ignored.layers] == [0]
    everywhere = load("mistral-7b")
    assert [(g.count, g.attention.window) for g in everywhere.layers] == [(32, 4096)]


def test_key_value_heads_of_the_first_llama_are_its_heads():
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = from_config(config | {"intermediate_size": 128, "vocab_size": 10}, "m")
    assert model.layers[0].attention.kv_heads == 4
    assert model.layers[0].attention.head_dim == 16


def test_positions_of_mpt_and_opt():
    # llm-foundry switches the learned table off where alibi is on; OPT's table has two rows for padding.
    config = json.loads((MODELS / "mpt-7b.json").read_text())
    learned = from_config(config | {"attn_config": {"alibi": False}, "no_bias": False}, "m")
    assert (learned.position, learned.learned_positions) == ("learned", 2048)
    h = 4096
    assert learned.parameters == 32 * (12 * h**2 + 13 * h) + (50432 + 2048) * h + 2 * h
    assert load("mpt-7b").position == "alibi"
    assert load("opt-13b").learned_positions == 2050


# --- faults ---------------------------------------------------------------------------------------------------------


def faults(config: dict[str, object] | str, tmp_path: Path | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        if isinstance(config, str):
            from_config(read_yaml(config, "config.json").data, "m", read_yaml(config, "config.json"))
        else:
            from_config(config, "m")
    return [str(fault) for fault in caught.value.faults]


def test_all_missing_fields_are_named_with_their_purpose():
    text = '{\n  "model_type": "deepseek_v3",\n  "hidden_size": 64\n}'
    found = faults(text)
    assert found[0] == (
        'config.json:1:1: num_hidden_layers: missing; the number of layers, which model_type "deepseek_v3" needs'
    )
    assert [line.split(": ")[1] for line in found] == [
        "num_hidden_layers",
        "num_attention_heads",
        "qk_nope_head_dim",
        "v_head_dim",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "intermediate_size",
        "vocab_size",
    ]


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_an_empty_configuration_of_every_type_is_refused_with_all_that_it_lacks(kind):
    assert len(faults({"model_type": kind})) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size: should be a whole number: the width of the residual stream [got '64']"),
        ({"hidden_size": 64.5}, "hidden_size: should be a whole number: the width of the residual stream [got 64.5]"),
        ({"hidden_size": True}, "hidden_size: should be a whole number: the width of the residual stream [got True]"),
        (
            {"vocab_size": math.inf},
            "vocab_size: should be a whole number: the number of rows of the token table [got inf]",
        ),
        ({"vocab_size": 0}, "vocab_size: should be at least 1: the number of rows of the token table [got 0]"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers: should be at most 100000: the number of layers [got 1000000000]",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads: should divide num_attention_heads [got 3 and 4]"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok: should not exceed the 4 experts [got 5]"),
        ({"attention_bias": "yes"}, "attention_bias: should be true or false [got 'yes']"),
        ({"layer_types": ["full_attention"]}, "layer_types: should list one type for each of num_hidden_layers layers"),
        (
            {"layer_types": ["linear_attention", "full_attention"] * 3},
            "layer_types: layers of type linear_attention are not modelled",
        ),
    ],
)
def test_a_wrong_field_is_named(change, message):
    assert faults(MIXTURE | change) == [f"m: {message}"]


def test_heads_that_do_not_divide_the_width():
    config = {"model_type": "gpt2", "n_embd": 65, "n_layer": 1, "n_head": 4, "n_positions": 8, "vocab_size": 10}
    assert faults(config) == ["m: n_head: should divide the width of the residual stream [got 4 and 65]"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen4"}, 'model_type: unknown model_type "qwen4"; allowed: bloom, deepseek_v2'),
        ({"model_type": "lama"}, '(did you mean "llama"?)'),
        ({"architectures": ["X"]}, "model_type: missing; the class of the model; allowed: bloom"),
        ({"model_type": "opt", "word_embed_proj_dim": 512, "hidden_size": 1024}, "word_embed_proj_dim: should be 1024"),
        ({"model_type": "mpt", "attn_config": {"qk_ln": True}}, "attn_config.qk_ln: should be False"),
    ],
)
def test_what_is_not_supported_is_said(config, message):
    assert message in "\n".join(faults(config))


def test_faults_of_a_nested_text_model_stand_at_their_place():
    text = "model_type: gemma3\ntext_config:\n  model_type: gemma3_text\n  hidden_size: -1\n  num_hidden_layers: 2\n"
    assert faults(text) == [
        "config.json:2:1: text_config.sliding_window: missing; the number of tokens a sliding-window layer sees, "
        'which model_type "gemma3_text" needs',
        "config.json:2:1: text_config.intermediate_size: missing; the inner width of the feed-forward part, "
        'which model_type "gemma3_text" needs',
        "config.json:4:3: text_config.hidden_size: should be at least 1: the width of the residual stream [got -1]",
    ]


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 300),
    st.just(2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(["alibi", "qk_ln"]), st.integers(0, 1)),
)
FIELDS = sorted(
    {key for path in MODELS.glob("*.json") for key in json.loads(path.read_text())}
    | {"layer_types", "moe_layer_freq", "text_config", "sliding_window_pattern", "max_window_layers", "enable_bias"}
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.sampled_from(sorted(MODELS.glob("*.json"))), st.dictionaries(st.sampled_from(FIELDS), junk, max_size=3))
def test_whatever_a_configuration_holds_the_answer_is_a_model_or_faults(path, changes):
    try:
        assert from_config(json.loads(path.read_text()) | changes, "m").parameters > 0
    except InputError as error:
        assert error.faults


@pytest.mark.parametrize("kind", ["nemotron_h", "jamba", "mamba", "mamba2", "bamba", "kimi_linear", "granitemoehybrid"])
def test_hybrid_models_are_refused_with_the_reason(kind):
    with pytest.raises(ModelNotCovered, match="state-space layers are not modelled"):
        from_config({"model_type": kind, "hidden_size": 64}, "m")


# --- the short description ------------------------------------------------------------------------------------------

SHORT = {"name": "m", "hidden": 64, "layers": 3, "heads": 4, "ffn": 128, "vocab": 100}


def short(**changes: object) -> Architecture:
    return from_description(ModelDescription.model_validate(SHORT | changes))


def test_short_description_of_a_mixture():
    model = short(kv_heads=2, experts=8, experts_per_token=2, expert_width=32, shared_width=48, dense_layers=1)
    attention = 2 * 64 * 64 + 2 * 64 * 32
    experts = 8 * (3 * 64 * 32 + 64) + 3 * 64 * 48
    assert model.parameters == 3 * (attention + 2 * 64) + 3 * 64 * 128 + 2 * experts + 2 * 100 * 64 + 64
    assert model.parameters - model.active_parameters == 2 * 6 * 3 * 64 * 32
    assert model.leading == 1


def test_short_description_agrees_with_config_json():
    config = json.loads((MODELS / "gpt-2.json").read_text())
    same = short(
        name="gpt-2",
        hidden=768,
        layers=12,
        heads=12,
        ffn=3072,
        vocab=50257,
        gated=False,
        bias=True,
        norm="layernorm",
        learned_positions=1024,
        tied_embeddings=True,
        source=config["source"],
    )
    assert same == from_config(config, "gpt-2")


@pytest.mark.parametrize(
    ("changes", "line", "message"),
    [
        ({"heads": 5}, 4, "heads: should divide hidden, 64, unless head_dim is given"),
        ({"kv_heads": 3}, 7, "kv_heads: should divide heads, 4"),
        ({"ffn": None}, 5, "ffn: missing; inner width of the feed-forward part"),
        ({"experts_per_token": 2}, 7, "experts_per_token: goes with experts, which is not given"),
        ({"position": "learned"}, 1, 'learned_positions: goes with position "learned", and the other way round'),
        ({"hiden": 3}, 7, "hiden: unknown key; allowed: name, hidden"),
    ],
)
def test_faults_of_a_short_description_stand_at_their_key(tmp_path, changes, line, message):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(SHORT | changes, sort_keys=False))
    with pytest.raises(InputError) as caught:
        load_architecture("m.yaml", tmp_path)
    assert str(caught.value).startswith(f"{path}:{line}:1: {message}")


def test_missing_keys_of_a_short_description_are_named_with_their_meaning():
    with pytest.raises(InputError) as caught:
        load_architecture({"name": "m", "heads": 4, "ffn": 8, "vocab": 9}, HERE)
    assert [str(fault) for fault in caught.value.faults] == [
        "model: hidden: missing; Width of the residual stream",
        "model: layers: missing; Number of layers",
    ]


sizes = st.integers(1, 64)
descriptions = st.fixed_dictionaries(
    {
        "name": st.just("m"),
        "hidden": sizes,
        "layers": sizes,
        "heads": st.just(8),
        "kv_heads": st.sampled_from([1, 2, 4, 8]),
        "head_dim": sizes,
        "ffn": sizes,
        "vocab": sizes,
        "gated": st.booleans(),
        "bias": st.booleans(),
        "tied_embeddings": st.booleans(),
        "learned_positions": st.integers(0, 9),
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    }
)
mixtures = st.fixed_dictionaries({"experts": st.integers(2, 9), "experts_per_token": st.just(2), "expert_width": sizes})
either = st.tuples(descriptions, st.one_of(st.just({}), mixtures)).map(lambda pair: pair[0] | pair[1])


@given(either)
def test_a_short_description_survives_being_written_and_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("models") / "m.yaml"
    path.write_text(yaml.safe_dump(data))
    assert load_architecture(str(path), HERE) == load_architecture(data, HERE)


@given(either)
def test_parameters_grow_with_every_size(data):
    def parameters(data: dict[str, object]) -> int:
        return from_description(ModelDescription.model_validate(data)).parameters

    before = parameters(data)
    mixture = "experts" in data
    for key in (
        "hidden",
        "layers",
        "head_dim",
        "vocab",
        "learned_positions",
        *(("experts", "expert_width") if mixture else ("ffn",)),
    ):
        assert parameters(data | {key: data[key] + 1}) > before
    assert parameters(data | {"heads": 16}) > before
    assert parameters(data | {"kv_heads": 8}) >= before


@given(either, st.integers(1, 10_000))
def test_parts_add_up_and_flops_grow_with_the_sequence(data, seq_len):
    model = from_description(ModelDescription.model_validate(data))
    layers = sum(group.count * layer_parameters(group, model.hidden).total for group in model.layers)
    ends = model.embedding_parameters + model.output_parameters + model.final_norm_parameters
    assert model.parameters == layers + ends
    assert 0 < model.active_parameters <= model.parameters
    assert model_flops_per_token(model, seq_len + 1) > model_flops_per_token(model, seq_len)


def test_the_schema_in_the_repository_is_the_generated_one_and_admits_the_bundled_files():
    written = json.loads((MODELS.parent / "schemas" / "model.schema.json").read_text())
    assert written == json_schema()
    checker = jsonschema.Draft202012Validator(written)
    for path in sorted(MODELS.glob("*.yaml")):
        if path.name not in ("aliases.yaml", "not-covered.yaml"):
            assert path.read_text().startswith("# yaml-language-server: $schema=../schemas/model.schema.json\n")
            checker.validate(yaml.safe_load(path.read_text()))


# --- the catalogue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("LLAMA3_70B", "llama-3.1-70b"),
        ("Llama3 70B", "llama-3.1-70b"),
        ("llama3.1-405b", "llama-3.1-405b"),
        ("Qwen3_235B_a22B", "qwen3-235b-a22b"),
        ("DeepSeekV3", "deepseek-v3"),
        ("GPT OSS 120B", "gpt-oss-120b"),
        ("Kimi K2", "kimi-k2"),
    ],
)
def test_names_are_found_however_they_are_written(written, name):
    assert load(written) is load(name)


def test_every_name_and_alias_means_one_model():
    aliases = yaml.safe_load((MODELS / "aliases.yaml").read_text())
    assert set(aliases) <= set(architecture_names())
    words = [*architecture_names(), *(alias for names in aliases.values() for alias in names)]
    # points in numbers count: opt-1.3b and opt-13b
    plain = [word.casefold().translate(str.maketrans("", "", "-_ ")) for word in words]
    assert len(plain) == len(set(plain))
    for name, others in aliases.items():
        assert all(bundled_architecture(alias) is bundled_architecture(name) for alias in others)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("llama2-7b", "llama-2-7b"),
        ("llama2-70b", "llama-2-70b"),
        ("llama3.1-8b", "llama-3.1-8b"),
        ("llama3.1-70b", "llama-3.1-70b"),
        ("Llama_3.3_70B", "llama-3.1-70b"),
        ("llama3.1-405b", "llama-3.1-405b"),
        ("mistral-7b", "mistral-7b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("gptj-6b", "gptj-6b"),
        ("GPT-J 6B", "gptj-6b"),
        ("internlm-20b", "internlm-20b"),
        ("deepseek-r1", "deepseek-v3"),
        ("deepseek-r1-0528", "deepseek-v3"),
        ("kimi-k2.5", "kimi-k2.5"),
        ("MiniMax M2.5", "minimax-m2.5"),
        ("qwen3.5-397b-a17b", "qwen3.5-397b-a17b"),
        ("bloom-176b", "bloom-176b"),
        ("llama3.2-70b", None),
        ("qwen3.5-35b-a3b", None),
        ("minimax-m1", None),
        ("internlm-7b", None),
        ("kimi-k2.6", None),
    ],
)
def test_a_name_as_people_write_it_finds_its_model_and_no_neighbour(written, name):
    assert bundled_architecture(written) is (load(name) if name else None)


@pytest.mark.skipif(not (DATA.parent / "serving").is_dir(), reason=f"no measurements at {DATA.parent / 'serving'}")
def test_every_model_of_the_served_rows_is_bundled():
    rows = pd.read_csv(DATA.parent / "serving" / "serving_points.csv.gz", usecols=["model"])
    assert [name for name in rows["model"].unique() if bundled_architecture(name) is None] == []


def test_every_bundled_model_has_a_source_and_its_own_name():
    for name in architecture_names():
        assert load(name).name == name
        assert load(name).source


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r'model: "llama-3-80b" is neither .* \(did you mean "llama-3.1-8'):
        load("llama-3-80b")
    source = read_yaml("kind: train\nmodel: lama-2-7b\n", "s.yaml")
    with pytest.raises(InputError, match=r's.yaml:2:1: model: "lama-2-7b" is neither'):
        load_architecture("lama-2-7b", HERE, source)


def test_a_model_that_is_known_not_to_be_covered_is_answered_with_the_reason():
    with pytest.raises(ModelNotCovered, match="state-space layers are not modelled"):
        load("Nemotron_3_Nano")


def test_a_model_of_which_only_serving_is_modelled_is_not_trained():
    source = read_yaml("kind: train\nmodel: qwen3.5-397b-a17b\n", "s.yaml")
    with pytest.raises(ModelNotCovered, match=r"s.yaml:2:1: model: .* serving alone, not in training"):
        trainable(load("qwen3.5-397b-a17b"), source)
    assert trainable(load("qwen3-8b"), source) is load("qwen3-8b")
    with pytest.raises(ModelNotCovered, match=r"a config.json says them"):
        load("Qwen3.5-35B-A3B")


def test_a_config_json_is_read_from_its_path_or_its_folder(tmp_path):
    folder = tmp_path / "my-llama"
    folder.mkdir()
    text = (MODELS / "llama-2-7b.json").read_text().replace("  ", "\t")
    (folder / "config.json").write_text(text)
    for value in ("my-llama", "my-llama/config.json"):
        model = load_architecture(value, tmp_path)
        assert (model.name, model.parameters) == ("my-llama", 6_738_415_616)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="should be a mapping"):
        load_architecture("my-llama", tmp_path)
    (folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_architecture("my-llama", tmp_path)


def test_a_model_described_inside_a_scenario_has_its_faults_there():
    source = read_yaml(
        "kind: train\nmodel:\n  name: m\n  hidden: 64\n  layers: 0\n  heads: 4\n  ffn: 9\n  vocab: 9\n", "s"
    )
    with pytest.raises(InputError, match=r"s:5:3: model.layers: "):
        load_architecture(source.data["model"], HERE, source)


def test_finding_one_model_is_fast():
    catalogue = importlib.import_module("perfmodel.architecture.catalogue")
    for function in (catalogue._files, catalogue._names, catalogue._bundled):
        function.cache_clear()
    start = time.perf_counter()
    load("deepseek-v3")
    assert time.perf_counter() - start < 0.05


# --- rows of measurements -------------------------------------------------------------------------------------------


def test_a_row_whose_columns_agree_is_the_bundled_model():
    assert from_columns("DeepSeekV3 (dropless)", 61, 7168, 128, 128, 18432, 129280, 4096, 256, 8, 2048) == load(
        "deepseek-v3"
    )
    assert from_columns("DeepSeekV3 (w/o MTP)").mtp_layers == 0
    padded = from_columns("gpt-2", 12, 768, 12, 12, 3072, 50304, 1024)
    assert padded == replace(load("gpt-2"), vocab=50304)


def test_a_row_whose_columns_disagree_is_built_from_them():
    model = from_columns("mpt-7b", 32, 4096, 32, 32, 16384, 50368, 2048)
    assert (model.position, model.learned_positions, model.vocab) == ("learned", 2048, 50368)


def test_conventions_of_a_model_built_from_columns():
    plain = from_columns("gpt-x", 2, 64, 4, None, 256, 100, 32)
    assert plain.parameters == 2 * (12 * 64**2 + 13 * 64) + (100 + 32) * 64 + 2 * 64
    gated = from_columns("x", 2, 64, 4, 2, 192, 100, 32)
    assert gated.parameters == 2 * (3 * 64**2 + 3 * 64 * 192 + 2 * 64) + 2 * 100 * 64 + 64
    mixture = from_columns("x", 2, 64, 4, 2, 256, 100, 32, 4, 2, 96)
    assert mixture.parameters == 2 * (3 * 64**2 + 4 * (3 * 64 * 96 + 64) + 2 * 64) + 2 * 100 * 64 + 64


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (("unheard-of",), "not among the bundled models, and its columns are blank"),
        (("unheard-of", 2, 64, 4, 4, 256, 100, None), "seq_len, the number of its positions, is blank"),
        (
            ("unheard-of", 2, 64, 5, 5, 192, 100, 32),
            "its columns do not make an architecture: heads should divide hidden",
        ),
        (("DeepSeekV4 Flash",), "compressed attention and hyper-connections are not modelled"),
        (("Nemotron V3 Super 120B (26.02)",), "state-space layers are not modelled"),
        (("Nemotron_3_Super", 88, 4096, 32, 2, 2688, 131072, 8192, 512, 22, 2688), "state-space layers"),
    ],
)
def test_a_row_without_an_architecture_is_refused_with_the_reason(columns, reason):
    with pytest.raises(ModelNotCovered) as caught:
        from_columns(*columns)
    assert reason in caught.value.reason


COLUMNS = ["model", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq_len", "experts", "topk", "moe_ffn"]


def rows(*files: str) -> list[tuple[pd.Series, list[object]]]:
    if not DATA.is_dir():
        pytest.skip(f"no measurements at {DATA}")
    table = pd.concat(pd.read_csv(DATA / file) for file in files)
    return [
        (row, [value if isinstance(value, str) else None if pd.isna(value) else int(value) for value in row[COLUMNS]])
        for _, row in table.iterrows()
    ]


def test_parameters_of_the_measured_models():
    # params_b is what each source printed, or its own count: 1e9, to as many digits as it has.
    files = ("llm_foundry_fsdp_a100.csv", "megatron_sc21_a100.csv", "torchtitan_llama31_h100.csv")
    digits = {"llm_foundry": 4, "megatron_sc21": 1, "torchtitan": 1}
    for row, columns in rows(*files):
        assert round(from_columns(*columns).parameters / 1e9, digits[row.source_key]) == pytest.approx(
            round(row.params_b, digits[row.source_key])
        )


def test_points_in_numbers_are_part_of_a_name():
    assert load("opt-1.3b").depth == 24
    assert load("opt-13b").depth == 40
    assert load("gpt-1.3b").name == "gpt-3-1.3b"
    with pytest.raises(InputError):
        load("opt-17.5b")
    with pytest.raises(InputError):
        load("llama-2-1.3b")
    # left out where nothing else is meant
    assert load("llama31-8b").name == load("llama-3-1-8b").name == "llama-3.1-8b"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b"),
        ("google/gemma-3-12b-it", "gemma-3-12b"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.1-70b"),
    ],
)
def test_a_model_is_found_by_its_name_on_hugging_face(written, name):
    assert load(written).name == name


def test_a_file_goes_before_a_name_on_hugging_face(tmp_path):
    folder = tmp_path / "google" / "gemma-3-12b-it"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((MODELS / "qwen3-8b.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_architecture("google/gemma-3-12b-it", tmp_path).hidden == 4096


def test_layers_of_llama_4():
    scout, maverick = load("llama-4-scout"), load("llama-4-maverick")
    # of 48 layers, every fourth sees all tokens; in Maverick every second has experts
    assert sum(group.count for group in scout.layers if group.attention.window == 0) == 12
    assert sum(group.count for group in maverick.layers if group.feed_forward.experts) == 24
    # weights are tied to nothing: 17 B active of either (its card)
    for model in (scout, maverick):
        idle = sum(
            group.count * (group.feed_forward.experts - 1) * 3 * model.hidden * group.feed_forward.expert_width
            for group in model.layers
            if group.feed_forward.experts
        )
        assert (model.parameters - idle) / 1e9 == pytest.approx(17, abs=0.5)


def test_measured_models_that_are_not_covered():
    refused = set()
    for _, columns in rows(*(path.name for path in DATA.glob("*.csv") if path.name != "galvatron_profiles.csv")):
        try:
            from_columns(*columns)
        except ModelNotCovered:
            refused.add(columns[0])
    assert {name.split()[0].split("_")[0] for name in refused} == {"Nemotron", "DeepSeekV4"}
    assert len(refused) == 8


@pytest.mark.parametrize(("model", "tolerance"), [("LLAMA", 0.001), ("DeepSeek", 0.005), ("Qwen3", 0.005)])
def test_flops_are_those_the_measurements_report(model, tolerance):
    # Reported FLOP/s per GPU over tokens/s per GPU; Megatron-Core halves causal attention and counts the logits and
    # the prediction module, and leaves out the routers.
    ratios = [
        row.tflops_per_gpu
        * 1e12
        / row.tokens_per_s_per_gpu
        / model_flops_per_token(from_columns(*columns), row.seq_len)
        for row, columns in rows("megatron_bridge_h100_gb200.csv")
        if row.model.startswith(model) and "V4" not in row.model and not pd.isna(row.tflops_per_gpu)
    ]
    assert len(ratios) >= 10
    assert abs(pd.Series(ratios).median() - 1) < tolerance
