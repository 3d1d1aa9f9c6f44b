"""The cases of transformers.safetensors, for make_fixtures.py: attention, and models made of it."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def lower_right(queries, keys):
    """What each query sees of the keys, where the last sees all."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def attention(t):
    def case(name, sizes, mask=None, causal=False, scale=None):
        batch, heads, kv_heads, queries, keys, width = sizes

        def inputs(d):
            args = {"q": d.normal(batch, heads, queries, width)}
            args |= {key: d.normal(batch, kv_heads, keys, width) for key in ("k", "v")}
            return args | ({"mask": mask(d)} if mask else {})

        def function(q, k, v, mask=None):
            seen = lower_right(queries, keys) if causal else mask
            if causal and mask is not None:
                seen = mask.masked_fill(~seen, -math.inf)
            return F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=heads != kv_heads)

        t.case(f"attention_{name}", inputs, function, causal=causal, scale=scale)

    case("plain", (2, 2, 2, 7, 7, 8))
    case("causal", (1, 1, 1, 33, 33, 16), causal=True)
    case("causal_few_queries", (1, 2, 1, 3, 20, 32), causal=True)
    case("causal_few_keys", (1, 2, 2, 6, 4, 8), causal=True)
    case("shared", (2, 6, 2, 5, 9, 8))
    case("shared_causal_scale", (1, 4, 2, 13, 13, 8), causal=True, scale=0.5)
    case("mask", (2, 2, 2, 5, 9, 8), mask=lambda d: d.normal(2, 1, 5, 9))
    case("mask_causal", (1, 2, 1, 5, 6, 16), mask=lambda d: d.normal(2, 5, 6), causal=True)
    # Each query sees a key at least.
    seen = lambda d: d.ids(2, 5, 9).astype(bool) | np.eye(5, 9, dtype=bool)
    case("bools", (2, 2, 2, 5, 9, 8), mask=seen)


def turned(x, cos, sin, pairs):
    """x [.., width] as complex numbers, multiplied by cos + i sin; pairs are neighbours, or the halves' elements."""
    parts = x.unflatten(-1, (-1, 2) if pairs else (2, -1))
    parts = parts if pairs else parts.transpose(-1, -2)
    y = torch.view_as_real(torch.view_as_complex(parts.contiguous()) * torch.complex(cos, sin))
    return (y if pairs else y.transpose(-1, -2)).flatten(-2)


def rotary_tables(positions, width, base=10000.0):
    """Cosines and sines [positions, width / 2], rounded to f32 as our tables are."""
    angles = np.arange(positions)[:, None] / base ** (np.arange(0, width, 2) / width)
    return [torch.from_numpy(f(angles).astype(np.float32).astype(np.float64)) for f in (np.cos, np.sin)]


def self_attention(x, weights, heads, kv_heads, causal, pairs=None):
    """Written out: queries, keys and values of one product, the heads of each side by side."""
    projected = F.linear(x, weights["qkv.weight"], weights.get("qkv.bias")).unflatten(-1, (heads + 2 * kv_heads, -1))
    q, k, v = projected.transpose(1, 2).split((heads, kv_heads, kv_heads), 1)
    if pairs is not None:
        tables = rotary_tables(x.shape[1], q.shape[-1])
        q, k = turned(q, *tables, pairs), turned(k, *tables, pairs)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)
    return F.linear(y.transpose(1, 2).flatten(2), weights["output.weight"], weights.get("output.bias"))


def attention_weights(d, prefix, width, rows, bias=True):
    weights = {f"{prefix}qkv.weight": d.normal(rows, width, scale=width**-0.5)}
    weights[f"{prefix}output.weight"] = d.normal(width, width, scale=width**-0.5)
    if bias:
        weights |= {f"{prefix}qkv.bias": d.normal(rows, scale=0.1), f"{prefix}output.bias": d.normal(width, scale=0.1)}
    return weights


def norm_weights(d, prefix, width):
    return {f"{prefix}weight": d.grid(1 + d.normal(width, scale=0.1)), f"{prefix}bias": d.normal(width, scale=0.1)}


def block_weights(d, prefix, width):
    return {
        **norm_weights(d, f"{prefix}attention_norm.", width),
        **attention_weights(d, f"{prefix}attention.", width, 3 * width),
        **norm_weights(d, f"{prefix}mlp_norm.", width),
        f"{prefix}up.weight": d.normal(4 * width, width, scale=width**-0.5),
        f"{prefix}up.bias": d.normal(4 * width, scale=0.1),
        f"{prefix}down.weight": d.normal(width, 4 * width, scale=(4 * width) ** -0.5),
        f"{prefix}down.bias": d.normal(width, scale=0.1),
    }


# What PyTorch's block calls the parameters of ours.
BLOCK = {
    "norm1.": "attention_norm.",
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj.": "attention.output.",
    "norm2.": "mlp_norm.",
    "linear1.": "up.",
    "linear2.": "down.",
}


def block(x, weights, heads, prefix=""):
    """PyTorch's own block, norms first and causal."""
    width = x.shape[-1]
    gelu = lambda x: F.gelu(x, approximate="tanh")
    layer = torch.nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, gelu, batch_first=True, norm_first=True, dtype=torch.float64
    )
    kinds = ("weight", "bias")
    state = {theirs + kind: weights[prefix + ours + kind] for theirs, ours in BLOCK.items() for kind in kinds}
    hidden = ~lower_right(x.shape[1], x.shape[1])
    return torch.func.functional_call(layer, state, (x, hidden))


def transformers(t):
    attention(t)
    for layout, pairs in (("halves", False), ("pairs", True)):
        t.case(
            f"rotary_{layout}",
            lambda d: {"x": d.normal(2, 5, 3, 8), "cos": d.normal(5, 1, 4), "sin": d.normal(5, 1, 4)},
            lambda x, cos, sin: turned(x, cos, sin, pairs),
        )
    for name, width, settings in (
        ("gpt2", 16, {"heads": 4, "kv_heads": 4, "causal": True}),
        ("shared_halves", 16, {"heads": 4, "kv_heads": 2, "causal": True, "pairs": False}),
        ("pairs", 8, {"heads": 2, "kv_heads": 2, "causal": False, "pairs": True}),
    ):
        heads, kv_heads = settings["heads"], settings["kv_heads"]
        rows = (heads + 2 * kv_heads) * width // heads
        t.case(
            f"mha_{name}",
            lambda d: {"x": d.normal(2, 6, width), **attention_weights(d, "", width, rows, bias=name == "gpt2")},
            lambda x, **weights: self_attention(x, weights, **settings),
            **settings,
        )
    t.case(
        "block",
        lambda d: {"x": d.normal(2, 7, 16), **block_weights(d, "", 16)},
        lambda x, **weights: block(x, weights, heads=2),
        heads=2,
    )

    layers, heads, width, vocabulary, context = 2, 3, 24, 17, 12

    def gpt_inputs(d):
        weights = {"tokens.weight": d.normal(vocabulary, width, scale=0.25)}
        weights["positions.weight"] = d.normal(context, width, scale=0.25)
        for layer in range(layers):
            weights |= block_weights(d, f"blocks.{layer}.", width)
        ids = {"ids": d.ids(vocabulary, 3, context), "targets": d.ids(vocabulary, 3, context)}
        return {**weights, **norm_weights(d, "norm.", width), **ids}

    def gpt(ids, targets, **weights):
        x = F.embedding(ids, weights["tokens.weight"]) + weights["positions.weight"]
        for layer in range(layers):
            x = block(x, weights, heads, f"blocks.{layer}.")
        x = F.layer_norm(x, (width,), weights["norm.weight"], weights["norm.bias"], 1e-5)
        logits = F.linear(x, weights["tokens.weight"])
        t.tensors["gpt/logits"] = logits.detach().numpy()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    t.case("gpt", gpt_inputs, gpt, kept="f32", layers=layers, heads=heads)
