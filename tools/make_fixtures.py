#!/usr/bin/env python3
"""What PyTorch computes, kept as small safetensors files for the tests of autograd, layers and optimisers.

    python3 tools/make_fixtures.py [FOLDER]      # tests/fixtures unless told

Needs torch, numpy and safetensors; the committed files were made with torch 2.15.0, numpy 2.4.6 and
safetensors 0.8.0 on a CPU. Two runs on one machine give the same bytes. Inputs come from numpy's PCG64, seeded
by the case's name, so they depend neither on torch nor on the other cases; every one is a multiple of 2^-12, so
f32 and f64 hold the same numbers.

layers.safetensors, in f64 (ids, targets and indices in i64, conditions in bool), for each case NAME:
    NAME/in/ARG     inputs and parameters
    NAME/out        the result
    NAME/seed       the gradient given to backward, of the shape of the result
    NAME/grad/ARG   the gradient of sum(out * seed), for each differentiable argument
    NAME/v          for some cases: a direction, of the shape of x
    NAME/hvp        with v: the gradient of sum(grad_x * v) with respect to x

transformers.safetensors: the same, for attention and models made of it. Inputs and seeds have eight significant bits,
so every float dtype holds the same numbers; they are stored in f16, all else in f64, or in f32 for the largest case.
Names of parameters are those of our modules.

optimisers.safetensors: 50 steps of each configuration on
    loss = sum(c1 * a^2) + sum(c2 * (b - t)^4) + sum((a[:, :1] * b[:3, None])^2)
    problem/ARG             a, b (where every run starts), c1, c2, t, in f64
    NAME/DTYPE/ARG/STEP     a and b after 1, 2, 10 and 50 steps; DTYPE is f64 or f32
    NAME/DTYPE/loss         the loss of each step, before the update: [0] is that of the start
    NAME/DTYPE/norm         adam_clip: the norm of all gradients of each step, before clipping, in DTYPE
    NAME/lr                 adamw_cosine: the learning rate of each step, in f64

Each file's metadata has one key, "fixtures": JSON with the versions and the settings of each case.
"""

import argparse
import json
import math
import pathlib
import zlib

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from transformer_fixtures import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 50
KEPT = (1, 2, 10, 50)


class Inputs:
    """Draws the inputs of one case."""

    def __init__(self, name):
        self.rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def normal(self, *shape, scale=1.0):
        return self.grid(self.rng.standard_normal(shape) * scale)

    def uniform(self, low, high, *shape):
        return self.grid(self.rng.uniform(low, high, shape))

    def ids(self, high, *shape):
        return self.rng.integers(0, high, shape, dtype=np.int64)

    @staticmethod
    def grid(values):
        return np.asarray(np.round(np.asarray(values) * 4096) / 4096)


class NarrowInputs(Inputs):
    """Numbers of every float dtype: eight significant bits, and none so small that f16 would lose some of them."""

    @staticmethod
    def grid(values):
        fraction, exponent = np.frexp(values)
        return np.asarray(np.ldexp(np.round(fraction * 256), np.maximum(exponent, -8) - 8))


class Layers:
    def __init__(self, inputs=Inputs):
        self.tensors, self.settings, self.inputs = {}, {}, inputs

    def case(self, name, inputs, function, hvp=False, kept="f64", **settings):
        """Runs `function`, which takes the arrays that `inputs(Inputs)` names, forward and backward."""
        draw = self.inputs(name)
        args = {}
        for arg, value in inputs(draw).items():
            args[arg] = torch.from_numpy(np.array(value))
            args[arg].requires_grad_(args[arg].is_floating_point())
        out = function(**args)
        seed = torch.from_numpy(draw.normal(*out.shape))
        wanted = {arg: tensor for arg, tensor in args.items() if tensor.requires_grad}
        grads = torch.autograd.grad(out, list(wanted.values()), seed, create_graph=hvp)

        def put(key, tensor):
            # A copy: some gradients are expanded views. np.array keeps a scalar a scalar.
            array = np.array(tensor.detach().numpy(), order="C")
            if array.dtype == np.float64 and self.inputs is NarrowInputs:
                given = key.startswith("in/") or key == "seed"
                stored = array.astype(np.float16 if given else {"f32": np.float32, "f64": np.float64}[kept])
                assert not given or (stored == array).all(), key
                array = stored
            self.tensors[f"{name}/{key}"] = array

        for arg, tensor in args.items():
            put(f"in/{arg}", tensor)
        put("out", out)
        put("seed", seed)
        for arg, grad in zip(wanted, grads):
            put(f"grad/{arg}", grad)
        if hvp:
            v = torch.from_numpy(draw.normal(*args["x"].shape))
            put("v", v)
            put("hvp", torch.autograd.grad((grads[0] * v).sum(), args["x"])[0])
        self.settings[name] = settings


def products(t):
    t.case(
        "linear",
        lambda d: {"x": d.normal(5, 7), "weight": d.normal(3, 7), "bias": d.normal(3)},
        lambda x, weight, bias: F.linear(x, weight, bias),
    )
    t.case(
        "matmul_batched",
        lambda d: {"a": d.normal(2, 1, 4, 5), "b": d.normal(3, 5, 6)},
        lambda a, b: a @ b,
    )
    for name, x, weight, settings in (
        ("conv2d", (2, 3, 6, 6), (4, 3, 3, 3), {}),
        ("conv2d_padding", (2, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
        # No window reads the last padded column, so the gradient's width does not follow from the result's.
        ("conv2d_stride", (2, 3, 7, 6), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
        ("conv2d_5x5", (1, 2, 7, 9), (3, 2, 5, 5), {}),
        ("conv2d_dilation", (1, 2, 8, 7), (2, 2, 3, 3), {"dilation": 2}),
    ):
        t.case(
            name,
            lambda d: {
                "x": d.normal(*x),
                "weight": d.normal(*weight, scale=0.4),
                "bias": d.normal(weight[0]),
            },
            lambda x, weight, bias: F.conv2d(x, weight, bias, **settings),
            **{"stride": 1, "padding": 0, "dilation": 1, **settings},
        )
    for suffix, shape in (("", (2, 3, 6, 4)), ("_odd", (1, 2, 5, 7))):
        distinct = lambda d: {"x": d.grid(d.rng.permutation(math.prod(shape)).reshape(shape) / 16 - 2)}
        t.case(f"max_pool2d{suffix}", distinct, lambda x: F.max_pool2d(x, 2), kernel=2, stride=2)
        t.case(f"avg_pool2d{suffix}", distinct, lambda x: F.avg_pool2d(x, 2), kernel=2, stride=2)


def normalisations(t):
    t.case(
        "layer_norm",
        lambda d: {"x": d.normal(2, 3, 8), "weight": d.normal(8), "bias": d.normal(8)},
        lambda x, weight, bias: F.layer_norm(x, (8,), weight, bias, 1e-5),
        hvp=True,
        eps=1e-5,
    )
    t.case(
        "rms_norm",
        lambda d: {"x": d.normal(4, 8), "weight": d.normal(8)},
        lambda x, weight: F.rms_norm(x, (8,), weight, 1e-6),
        hvp=True,
        eps=1e-6,
    )
    # One row far from zero: exp of it overflows unless the maximum is taken off first.
    far = lambda d: {"x": d.normal(4, 6) + [[0], [0], [800], [0]]}
    t.case("softmax", lambda d: {"x": d.normal(4, 6)}, lambda x: x.softmax(-1), hvp=True, dim=-1)
    t.case("softmax_dim0", lambda d: {"x": d.normal(4, 6)}, lambda x: x.softmax(0), dim=0)
    t.case("log_softmax", far, lambda x: x.log_softmax(-1), dim=-1)
    t.case("logsumexp", far, lambda x: x.logsumexp(-1), hvp=True, dim=-1)


def losses(t):
    logits = lambda d: {"x": d.normal(6, 5), "target": d.ids(5, 6)}
    t.case("cross_entropy", logits, lambda x, target: F.cross_entropy(x, target), hvp=True)
    t.case(
        "cross_entropy_smoothing",
        logits,
        lambda x, target: F.cross_entropy(x, target, label_smoothing=0.1),
        label_smoothing=0.1,
    )
    t.case("nll_loss", logits, lambda x, target: F.nll_loss(x, target))
    pair = lambda d: {"x": d.normal(4, 5), "target": d.normal(4, 5)}

    def pair_with_equal(d):
        args = pair(d)
        args["target"][1, 2] = args["x"][1, 2]
        return args

    t.case("mse_loss", pair, lambda x, target: F.mse_loss(x, target))
    t.case("l1_loss", pair_with_equal, lambda x, target: F.l1_loss(x, target))
    smooth = lambda x, target: F.smooth_l1_loss(x, target, beta=1.0)
    t.case("smooth_l1_loss", pair_with_equal, smooth, beta=1.0)

    def far_logits(d):
        x = d.normal(4, 5, scale=2.0)
        x[0, :2] = (40, -40)
        return {"x": x, "target": d.uniform(0, 1, 4, 5)}

    bce = lambda x, target: F.binary_cross_entropy_with_logits(x, target)
    t.case("bce_with_logits", far_logits, bce)


def activations(t):
    def inputs(d):
        x = d.normal(5, 6, scale=2.0)
        x[0, :4] = (-12, -4.5, 4.5, 12)
        return {"x": x}

    t.case("gelu_tanh", inputs, lambda x: F.gelu(x, approximate="tanh"), hvp=True)
    t.case("gelu_erf", inputs, lambda x: F.gelu(x), hvp=True)
    t.case("silu", inputs, lambda x: F.silu(x), hvp=True)
    t.case("tanh", inputs, lambda x: x.tanh(), hvp=True)
    t.case("elu", inputs, lambda x: F.elu(x, 1.0), alpha=1.0)
    t.case("leaky_relu", inputs, lambda x: F.leaky_relu(x, 0.01), negative_slope=0.01)
    t.case("softplus", inputs, lambda x: F.softplus(x), beta=1.0, threshold=20.0)
    t.case("mish", inputs, lambda x: F.mish(x))
    t.case("hardswish", inputs, lambda x: F.hardswish(x))
    t.case("selu", inputs, lambda x: F.selu(x))


def reductions(t):
    x = lambda d: {"x": d.normal(3, 4, 5)}
    t.case("var", x, lambda x: x.var(-1), dims=[-1], correction=1)
    t.case("var_population", x, lambda x: x.var((0, 2), correction=0), dims=[0, 2], correction=0)
    t.case("std", x, lambda x: x.std(1), dims=[1], correction=1)

    def with_zeros(d):
        x = d.normal(4, 5)
        x[1, 3] = 0
        x[2, [0, 4]] = 0
        return {"x": x}

    t.case("prod", with_zeros, lambda x: x.prod(1), dim=1)
    # Ties: each of the equal elements gets an equal share of the gradient.
    rows = [[1, 3, 3, -1, 0], [2, 2, 2, 2, 2], [-5, -4, -5, -6, -6], [0.5, 0, 0.25, 1, -1]]
    ties = lambda d: {"x": np.array(rows, dtype=np.float64)}
    t.case("amax", ties, lambda x: x.amax(1), dim=1)
    t.case("amin", ties, lambda x: x.amin(1), dim=1)


def indexing(t):
    t.case(
        "embedding",
        lambda d: {"weight": d.normal(6, 4), "ids": np.array([[3, 0, 3, 5, 1], [1, 3, 0, 0, 5]])},
        lambda weight, ids: F.embedding(ids, weight),
    )
    t.case(
        "gather",
        lambda d: {"x": d.normal(3, 5), "index": np.array([[0, 4, 4, 1], [2, 2, 2, 0], [3, 1, 0, 4]])},
        lambda x, index: x.gather(1, index),
        dim=1,
    )
    t.case(
        "index_select",
        lambda d: {"x": d.normal(4, 3), "index": np.array([0, 2, 2, 1, 0])},
        lambda x, index: x.index_select(0, index),
        dim=0,
    )
    t.case(
        "slice_step",
        lambda d: {"x": d.normal(7, 6)},
        lambda x: x[1:7:2, ::3],
        slices=[[1, 7, 2], [0, 6, 3]],
    )
    t.case("flip", lambda d: {"x": d.normal(2, 3, 4)}, lambda x: x.flip(0, 2), dims=[0, 2])
    t.case(
        "permute_reshape",
        lambda d: {"x": d.normal(2, 3, 4)},
        lambda x: x.permute(2, 0, 1).reshape(8, 3),
        permute=[2, 0, 1],
        reshape=[8, 3],
    )
    t.case(
        "cat",
        lambda d: {"a": d.normal(2, 3), "b": d.normal(2, 2)},
        lambda a, b: torch.cat((a, b, a), 1),
        order="a b a",
        dim=1,
    )
    t.case("expand", lambda d: {"x": d.normal(1, 3, 1)}, lambda x: x.expand(2, 3, 4), shape=[2, 3, 4])


def elementwise(t):
    t.case(
        "where",
        lambda d: {"condition": d.ids(2, 3, 4).astype(bool), "a": d.normal(3, 4), "b": d.normal(4)},
        lambda condition, a, b: torch.where(condition, a, b),
    )

    def ties(d):
        args = {"a": d.normal(3, 4), "b": d.normal(3, 4)}
        args["b"][[0, 1, 2], [1, 1, 3]] = args["a"][[0, 1, 2], [1, 1, 3]]
        return args

    # At a tie, half of the gradient goes to either side.
    t.case("maximum", ties, lambda a, b: torch.maximum(a, b))

    def at_bounds(d):
        x = d.normal(3, 4)
        x[0, :2] = (-0.5, 0.75)
        return {"x": x}

    # An element that equals a bound gets no gradient from this version of PyTorch; earlier ones gave it
    # all. So it has a case of its own.
    clamp = lambda x: x.clamp(-0.5, 0.75)
    t.case("clamp", lambda d: {"x": d.normal(3, 4)}, clamp, min=-0.5, max=0.75)
    t.case("clamp_at_bounds", at_bounds, clamp, min=-0.5, max=0.75)
    t.case(
        "pow",
        lambda d: {"a": d.uniform(0.25, 3, 4, 5), "b": d.normal(5, scale=2.0)},
        lambda a, b: a**b,
    )


def models(t):
    def mlp(x, w1, b1, ln_weight, ln_bias, w2, b2, target):
        h = F.gelu(F.linear(x, w1, b1), approximate="tanh")
        h = F.layer_norm(h, (16,), ln_weight, ln_bias, 1e-5)
        return F.cross_entropy(F.linear(h, w2, b2), target)

    t.case(
        "mlp",
        lambda d: {
            "x": d.normal(6, 8),
            "w1": d.normal(16, 8, scale=0.35),
            "b1": d.normal(16, scale=0.1),
            "ln_weight": 1 + d.normal(16, scale=0.1),
            "ln_bias": d.normal(16, scale=0.1),
            "w2": d.normal(4, 16, scale=0.25),
            "b2": d.normal(4, scale=0.1),
            "target": d.ids(4, 6),
        },
        mlp,
        hvp=True,
        gelu="tanh",
        eps=1e-5,
    )

    def convnet(x, conv_weight, conv_bias, fc_weight, fc_bias, target):
        h = F.max_pool2d(F.conv2d(x, conv_weight, conv_bias, padding=1).relu(), 2)
        return F.cross_entropy(F.linear(h.flatten(1), fc_weight, fc_bias), target)

    t.case(
        "convnet",
        lambda d: {
            "x": d.normal(2, 1, 8, 8),
            "conv_weight": d.normal(4, 1, 3, 3, scale=0.35),
            "conv_bias": d.normal(4, scale=0.1),
            "fc_weight": d.normal(5, 64, scale=0.125),
            "fc_bias": d.normal(5, scale=0.1),
            "target": d.ids(5, 2),
        },
        convnet,
        padding=1,
        pool=2,
    )


def cosine_with_warm_up(step, lr):
    """The learning rate of a step, the first being step 0: it rises for 5 steps and falls for 45."""
    if step < 5:
        return lr * (step + 1) / 5
    low = 0.1 * lr
    return low + (lr - low) * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5))) / 2


# Name: optimiser, its settings, and what else a step does. "groups" gives a and b settings of their own.
ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.02}, {}),
    "sgd_momentum": ("SGD", {"lr": 0.01, "momentum": 0.9}, {}),
    "sgd_nesterov": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}, {}),
    "sgd_momentum_dampening_wd": (
        "SGD",
        {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
        {},
    ),
    "adam": ("Adam", {"lr": 0.05, **ADAM}, {}),
    "adam_wd": ("Adam", {"lr": 0.05, **ADAM, "weight_decay": 0.1}, {}),
    "adamw": ("AdamW", {"lr": 0.05, **ADAM, "weight_decay": 0.1}, {}),
    "adamw_groups": (
        "AdamW",
        {**ADAM},
        {"groups": {"a": {"lr": 0.02, "weight_decay": 0.2}, "b": {"lr": 0.06, "weight_decay": 0.0}}},
    ),
    "adam_clip": ("Adam", {"lr": 0.05, **ADAM}, {"clip_norm": 0.5}),
    "adamw_cosine": ("AdamW", {"lr": 0.05, **ADAM, "weight_decay": 0.1}, {"schedule": "cosine"}),
}


def problem():
    d = Inputs("problem")
    return {
        "a": d.normal(3, 4),
        "b": d.normal(5),
        "c1": d.uniform(0.25, 1.5, 3, 4),
        "c2": d.uniform(0.25, 1, 5),
        "t": d.normal(5, scale=0.5),
    }


def trajectory(name, dtype):
    """The tensors of one configuration in one dtype, by what follows NAME/DTYPE/ in their names."""
    kind, settings, extra = OPTIMISERS[name]
    values = {key: torch.from_numpy(value).to(dtype) for key, value in problem().items()}
    a, b = values["a"].requires_grad_(), values["b"].requires_grad_()
    groups = [{"params": [p], **extra.get("groups", {}).get(key, {})} for key, p in (("a", a), ("b", b))]
    optimiser = getattr(torch.optim, kind)(groups, foreach=False, **settings)
    kept, loss_of, norm_of = {}, [], []
    for step in range(STEPS):
        if extra.get("schedule"):
            for group in optimiser.param_groups:
                group["lr"] = cosine_with_warm_up(step, settings["lr"])
        optimiser.zero_grad()
        loss = (
            (values["c1"] * a**2).sum()
            + (values["c2"] * (b - values["t"]) ** 4).sum()
            + ((a[:, :1] * b[:3, None]) ** 2).sum()
        )
        loss.backward()
        loss_of.append(loss.detach())
        if "clip_norm" in extra:
            norm_of.append(torch.nn.utils.clip_grad_norm_([a, b], extra["clip_norm"], foreach=False))
        optimiser.step()
        if step + 1 in KEPT:
            kept |= {f"{key}/{step + 1}": p.detach().clone() for key, p in (("a", a), ("b", b))}
    kept["loss"] = torch.stack(loss_of)
    if norm_of:
        kept["norm"] = torch.stack(norm_of)
    return {key: tensor.numpy() for key, tensor in kept.items()}


def made_by(t, *parts):
    for part in parts:
        part(t)
    return t.tensors, t.settings


def layers():
    return made_by(Layers(), products, normalisations, losses, activations, reductions, indexing, elementwise, models)


def optimisers():
    tensors = {f"problem/{key}": value for key, value in problem().items()}
    described = {}
    for name, (kind, settings, extra) in OPTIMISERS.items():
        described[name] = {"optimiser": kind, **settings, **extra}
        for dtype, of in (("f64", torch.float64), ("f32", torch.float32)):
            tensors |= {f"{name}/{dtype}/{key}": value for key, value in trajectory(name, of).items()}
        if extra.get("schedule"):
            rates = [cosine_with_warm_up(step, settings["lr"]) for step in range(STEPS)]
            tensors[f"{name}/lr"] = np.array(rates)
    return tensors, described


def main():
    parser = argparse.ArgumentParser(description="Writes what tests/it/torch.rs compares with.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "tests" / "fixtures")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "safetensors": safetensors.__version__}
    makers = {
        "layers": layers,
        "transformers": lambda: made_by(Layers(NarrowInputs), transformers),
        "optimisers": optimisers,
    }
    for name, make in makers.items():
        tensors, cases = make()
        for key, value in tensors.items():
            assert np.isfinite(value).all(), key
        # One key only: the order of several in the file is not fixed.
        metadata = {"fixtures": json.dumps({"versions": versions, "cases": cases})}
        path = folder / f"{name}.safetensors"
        save_file(tensors, path, metadata)
        print(f"{path}: {len(cases)} cases, {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
