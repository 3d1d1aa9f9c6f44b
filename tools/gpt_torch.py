#!/usr/bin/env python3
"""The GPT of examples/gpt in PyTorch: the same training, and the same benchmark.

    cargo run --release --example gpt -- --text FILE --steps 300 --record run.safetensors
    python3 tools/gpt_torch.py --follow run.safetensors [--device cuda] [--precision f16]

repeats a recorded training from its weights over its batches, and fails where the mean loss of steps 290 to 300, or
that of the last eleven, is more than 2% from ours.

    python3 tools/gpt_torch.py --bench [--small] [--device cuda] [--no-compile] [SIZES]

measures what `--bench` of the example measures: GPT-2 with 124 million parameters, or with --small a size for a CPU.
Needs torch and safetensors, and no network.
"""

import argparse
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# What mean losses may be apart.
APART = 0.02
SIZES = ("vocabulary", "context", "layers", "width", "heads")
GPT2 = dict(zip(SIZES, (50304, 1024, 12, 768, 12)))
SMALL = dict(zip(SIZES, (128, 256, 6, 384, 6)))


class Cache:
    """Keys and values of earlier positions, with room for all: its shapes never change."""

    def __init__(self, sizes, dtype, device):
        head = sizes["width"] // sizes["heads"]
        shape = (sizes["layers"], 2, 1, sizes["heads"], sizes["context"], head)
        self.layers = torch.zeros(shape, dtype=dtype, device=device)
        self.places = torch.arange(sizes["context"], device=device)
        # The position that comes next, on the device.
        self.position = torch.zeros(1, dtype=torch.long, device=device)

    def seen(self):
        return (self.places <= self.position)[None, None, None]

    def append(self, layer, k, v):
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)


class Block(nn.Module):
    """Norms first; the parameters have the names that ours have."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "output": nn.Linear(width, width)})
        self.mlp_norm = nn.LayerNorm(width, eps=1e-5)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x, cache=None, layer=0):
        all_heads = self.attention["qkv"](self.attention_norm(x)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = all_heads.chunk(3, 1)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.scaled_dot_product_attention(q, *cache.append(layer, k, v), attn_mask=cache.seen())
        x = x + self.attention["output"](y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Gpt(nn.Module):
    """GPT-2, whose head is the table of its tokens."""

    def __init__(self, vocabulary, context, layers, width, heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.02) if name.endswith("weight") else nn.init.zeros_(parameter)

    def forward(self, ids, cache=None):
        """Logits of what follows each position; with a cache, ids are the one token behind those in it."""
        places = self.positions.weight[: ids.shape[1]] if cache is None else self.positions(cache.position)
        x = self.tokens(ids) + places
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        return F.linear(self.norm(x), self.tokens.weight)

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


class Training:
    """What examples/gpt/train.rs does in a step."""

    def __init__(self, model, steps, learning_rate, precision, device, compiled=False):
        self.model, self.steps, self.learning_rate, self.device = model, steps, learning_rate, device
        self.loss = torch.compile(model.loss) if compiled else model.loss
        self.dtype = DTYPES[precision]
        # Only matrices decay.
        parts = [[p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (0.1, 0.0))]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "f16")
        self.done = 0

    def factor(self):
        """Of the learning rate: a linear rise, then half a cosine down to a tenth."""
        warm_up = min(self.steps, 100)
        if self.done < warm_up:
            return (self.done + 1) / warm_up
        share = min((self.done - warm_up) / max(self.steps - warm_up, 1), 1)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))

    def step(self, ids, targets):
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.factor()
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(ids, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return loss.detach()


def follow(arguments):
    device, precision = arguments.device, arguments.precision or "f32"
    with safe_open(arguments.follow, "pt", device=device) as file:
        settings, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    if float(settings["dropout"]):
        sys.exit("the recorded training drops elements at random, which cannot be repeated")
    model = Gpt(**{size: int(settings[size]) for size in SIZES}).to(device)
    prefix = "weights."
    model.load_state_dict({key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)})
    training = Training(model, int(settings["steps"]), float(settings["learning_rate"]), precision, device)
    ours, theirs = tensors["losses"].tolist(), []
    print(f"products in {settings['precision']}; PyTorch {torch.__version__} on {device}, in {precision}")
    print(f"{'step':>5} {'ours':>9} {'PyTorch':>9} {'apart':>8}")
    apart = lambda a, b: abs(a - b) / abs(b)
    batches = zip(tensors["ids"].long(), tensors["targets"].long())
    start = time.perf_counter()
    for step, (ids, targets) in enumerate(batches, 1):
        theirs.append(training.step(ids, targets).item())
        if step == 1 or step % 50 == 0 or step == len(ours):
            a, b = ours[step - 1], theirs[-1]
            print(f"{step:5} {a:9.5f} {b:9.5f} {apart(a, b):8.3%}", flush=True)
    print(f"{time.perf_counter() - start:.1f} s in PyTorch")
    windows = {(len(ours) - 10, len(ours))} | ({(290, 300)} if len(ours) >= 300 else set())
    good = True
    for first, last in sorted(windows):
        a, b = (statistics.mean(losses[max(first - 1, 0) : last]) for losses in (ours, theirs))
        good &= apart(a, b) <= APART
        print(f"mean loss of steps {max(first, 1)} to {last}: ours {a:.5f}, PyTorch's {b:.5f}, {apart(a, b):.3%} apart")
    print(f"{'within' if good else 'NOT within'} {APART:.0%}")
    return 0 if good else 1


class Bench:
    """Seconds by row and variant: of runs one after another with one wait, and the median of runs with a wait each."""

    RUNS, WARM_UP = 20, 4

    def __init__(self, arguments):
        self.device, self.batch = arguments.device, arguments.batch
        self.on_gpu = self.device.startswith("cuda")
        self.compiles = self.on_gpu if arguments.compile is None else arguments.compile
        self.precision = arguments.precision or ("f16" if self.on_gpu else "f32")
        given = {size: getattr(arguments, size) for size in SIZES}
        self.sizes = (SMALL if arguments.small else GPT2) | {size: n for size, n in given.items() if n is not None}
        self.rows = {}

    def wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def times(self, run):
        def timed(count=1):
            start = time.perf_counter()
            for _ in range(count):
                run()
            self.wait()
            return (time.perf_counter() - start) / count

        first = [timed() for _ in range(self.WARM_UP)]
        # Where a run takes long, fewer will do.
        runs = 3 if first[-1] > 1 else self.RUNS
        alone = statistics.median(timed() for _ in range(runs))
        return timed(runs), alone

    def put(self, row, variant, measure):
        """Keeps what `measure` returns; one that fails leaves its place empty."""
        try:
            self.rows.setdefault(row, {})[variant] = measure()
        except Exception as error:  # pylint: disable=broad-exception-caught
            print(f"{row}, {variant}: {error}", file=sys.stderr)

    def ids(self, rows, columns):
        ids = torch.arange(rows * columns, device=self.device) * 7919 % self.sizes["vocabulary"]
        return ids.view(rows, columns)

    def graph(self, run):
        """The run as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph

    def training(self, variant):
        model = Gpt(**self.sizes).to(self.device)
        if variant == "eager":
            print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
        training = Training(model, 1000, 1e-3, self.precision, self.device, variant == "compiled")
        ids = self.ids(self.batch, self.sizes["context"])
        start = time.perf_counter()
        training.step(ids, ids)
        self.wait()
        print(f"first training step, {variant}: {time.perf_counter() - start:.2f} s", flush=True)
        if not self.on_gpu:
            return self.times(lambda: training.step(ids, ids))
        torch.cuda.reset_peak_memory_stats()
        seconds = self.times(lambda: training.step(ids, ids))
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(f"peak memory of a training step, {variant}: {peak:.2f} GB", flush=True)
        return seconds

    def decoding(self, model, graphed):
        """Seconds a token, with a cache: of tokens that are read together, and of each read before the next."""
        cache = Cache(self.sizes, DTYPES[self.precision], self.device)
        id = self.ids(1, 1).clone()

        def step():
            id.copy_(model(id, cache)[:, -1].argmax(-1, keepdim=True))
            cache.position.add_(1)

        replay = self.graph(step).replay if graphed else step
        cache.position.zero_()

        def next_token():
            replay()
            return id.clone()

        for _ in range(self.WARM_UP):
            next_token()
        count = min(self.sizes["context"] - 1 - self.WARM_UP, 512) // 2
        start = time.perf_counter()
        torch.cat([next_token() for _ in range(count)]).tolist()
        together = (time.perf_counter() - start) / count
        start = time.perf_counter()
        for _ in range(count):
            next_token().item()
        return together, (time.perf_counter() - start) / count

    def inference(self):
        # Weights in the type of the products, as one would keep them.
        model = Gpt(**self.sizes).to(self.device, DTYPES[self.precision]).eval()
        many, one = self.ids(self.batch, self.sizes["context"]), self.ids(1, 1)
        row = f"forward {self.batch}x{self.sizes['context']}"
        self.put(row, "eager", lambda: self.times(lambda: model(many)))
        self.put("forward 1x1", "eager", lambda: self.times(lambda: model(one)))
        self.put("decoding", "eager", lambda: self.decoding(model, False))
        if self.on_gpu:
            self.put(row, "graph", lambda: self.times(self.graph(lambda: model(many)).replay))
            self.put("forward 1x1", "graph", lambda: self.times(self.graph(lambda: model(one)).replay))
            self.put("decoding", "graph", lambda: self.decoding(model, True))
        if self.compiles:
            compiled = torch.compile(model)
            self.put(row, "compiled", lambda: self.times(lambda: compiled(many)))

    def run(self):
        shape = ", ".join(f"{size} {n}" for size, n in self.sizes.items())
        print(f"PyTorch {torch.__version__} on {self.device}, {self.precision}: {shape}, batch {self.batch}")
        if not self.on_gpu:
            print(f"{torch.get_num_threads()} threads")
        row = f"training step {self.batch}x{self.sizes['context']}"
        for variant in ["eager"] + ["compiled"] * self.compiles:
            self.put(row, variant, lambda: self.training(variant))
            if self.on_gpu:
                torch.cuda.empty_cache()
        with torch.no_grad():
            self.inference()
        variants = ["eager", "compiled", "graph"]
        print(f"\n{'ms (a wait each)':24}" + "".join(f"{variant:>18}" for variant in variants))
        for row, times in self.rows.items():
            pairs = [times.get(variant) for variant in variants]
            cells = ("-" if pair is None else f"{pair[0] * 1e3:.3f} ({pair[1] * 1e3:.3f})" for pair in pairs)
            print(f"{row:24}" + "".join(f"{cell:>18}" for cell in cells))
        return 0 if all("eager" in times for times in self.rows.values()) else 1


def main():
    parser = argparse.ArgumentParser(description="The GPT of examples/gpt in PyTorch.")
    parser.add_argument("--follow", metavar="FILE", help="repeat the training that the example's --record kept")
    parser.add_argument("--bench", action="store_true", help="measure with random weights")
    parser.add_argument("--small", action="store_true", help="with --bench: a size for a CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=DTYPES, help="of products: f32; with --bench on a GPU, f16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; on a GPU unless told")
    parser.add_argument("--batch", type=int, default=8)
    for size in SIZES:
        parser.add_argument(f"--{size}", type=int, help="with --bench: instead of the usual")
    arguments = parser.parse_args()
    if bool(arguments.follow) == arguments.bench:
        parser.error("--follow FILE or --bench")
    torch.manual_seed(0)
    return follow(arguments) if arguments.follow else Bench(arguments).run()


if __name__ == "__main__":
    sys.exit(main())
