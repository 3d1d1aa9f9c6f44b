#!/usr/bin/env python3
"""TensorLogic beside PyTorch on this machine: one run measures both.

    python3 tools/compare_torch.py [--device cuda] [--compile] [WORD...]

Runs `cargo bench --bench metal_performance -- --save FILE`, which says what it measured, and then the same operations
on the same shapes in PyTorch (`pip install torch`): eager, and with --compile by torch.compile as far as its time goes.
Microseconds of a call, medians; a ratio above 1 means that the better of PyTorch's took longer. `TL_BENCH=FILE` names a
benchmark that is built already, for machines without cargo.

Both sides are timed in the same way, on as many sets of random inputs that take turns:

- device (GPUs): PyTorch: the replay of a CUDA graph of the calls; ours: the device's clock around calls that queue up;
- captured: a captured step of some calls, again and again; PyTorch: the replay of a CUDA graph, or on a CPU calls;
- amortised: calls one after another, outputs kept, one wait;
- synchronised: a call and a wait.

A training step (AdamW; f32 on a CPU, mixed f16 on a GPU) is captured whole as a CUDA graph.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
GROUPS = "matmul,elementwise,chains,rows,epilogues,transpose,attention,training,transfers"
CLOCKS = ["device", "captured", "amortised", "synchronised"]

# Seconds: for all of our cases on a machine without cargo, for a clock of a case, and for all that is compiled.
BENCH_SECONDS = float(os.environ.get("BENCH_SECONDS", 300))
CLOCK_SECONDS = 0.25
# Batches that are timed at least.
ROUNDS = 5
# A call that takes longer is timed once, by one clock for all.
SLOW_SECONDS = 1.0


def gelu(x):
    return F.gelu(x, approximate="tanh")


def chain(x, scale, shift, offset):
    """The twenty ops of bench/src/cases.rs."""
    for _ in range(5):
        x = torch.tanh(x * scale + shift) + offset
    return x


def attention(q, k, v):
    """Causal, but for a lone query, which sees all keys."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)


def attention_gradients(q, k, v, gradient):
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(attention(*leaves), leaves, gradient)


OPERATIONS = {
    "attention": attention,
    "attention to 4096": attention,
    "attention, gradients": attention_gradients,
    "matmul": torch.matmul,
    "add": torch.add,
    "mul": torch.mul,
    "sum": torch.sum,
    "relu": torch.relu,
    "gelu": gelu,
    "add_relu": lambda a, b: torch.relu(a + b),
    "affine": lambda a, s, b: a * s + b,
    "sum((a-b)^2)": lambda a, b: torch.sum((a - b) ** 2),
    "chain of 20": chain,
    "softmax": lambda x: torch.softmax(x, 1),
    "layer norm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5),
    "rms norm": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-5),
    "row sum": lambda x: torch.sum(x, 1),
    "column sum": lambda x: torch.sum(x, 0),
    "relu(matmul)": lambda a, b: torch.relu(a @ b),
    "gelu(matmul)": lambda a, b: gelu(a @ b),
    "gelu(matmul+bias)": lambda a, b, bias: gelu(a @ b + bias),
    "transpose": lambda x: x.t().contiguous(),
}


def label(case):
    return f"{case['operation']} {case['size']} {case['dtype']}"


def measure_ours(arguments):
    """The results that the benchmark saves. It may fail on the way: what it has written until then counts."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        built = os.environ.get("TL_BENCH")
        bench = [built] if built else ["cargo", "bench", "--bench", "metal_performance", "--"]
        command = [*bench, "--save", file.name, "--device", arguments.device, "--groups", GROUPS, *arguments.words]
        command += ["--quick"] * arguments.quick
        for dtype in arguments.dtype:
            command += ["--dtype", dtype]
        try:
            limit = BENCH_SECONDS if built else None
            code = subprocess.run(command, cwd=ROOT, timeout=limit, stdout=subprocess.DEVNULL).returncode
            failure = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            failure = f"stopped after {BENCH_SECONDS:.0f} s"
        if failure:
            print(f"the benchmark: {failure}", file=sys.stderr)
        text = pathlib.Path(file.name).read_text()
        return json.loads(text) if text else {"cases": []}


class Torch:
    """PyTorch on a device."""

    def __init__(self, device, compile_seconds):
        self.device = device
        self.compile_left = compile_seconds

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def random(self, shape, dtype):
        return torch.randn(shape, dtype=dtype, device=self.device)

    def wall(self, work):
        """Seconds of `work`, whose results live until it is done."""
        self.wait()
        start = time.perf_counter()
        kept = work()
        self.wait()
        return time.perf_counter() - start

    def again(self, work, least):
        """Seconds of `work`, several times."""
        end, times = time.perf_counter() + CLOCK_SECONDS, []
        while len(times) < least or time.perf_counter() < end:
            times.append(self.wall(work))
        return statistics.median(times)

    def clocks(self, call, calls, graph=True):
        """Microseconds of `call`, which is given the number of the run."""
        first = min(self.wall(lambda: call(run)) for run in range(2))
        if first > SLOW_SECONDS:
            return {"amortised": first * 1e6, "synchronised": first * 1e6}
        run = 0

        def next_call():
            nonlocal run
            run += 1
            return call(run)

        batch = lambda: [call(run) for run in range(calls)]
        self.wall(batch)  # finds its memory
        times = {"synchronised": self.again(next_call, 3), "amortised": self.again(batch, ROUNDS) / calls}
        if self.device == "cuda" and graph:
            times["device"] = times["captured"] = self.replay(batch) / calls
        if self.device == "cpu":
            times["captured"] = times["amortised"]
        return {clock: seconds * 1e6 for clock, seconds in times.items()}

    def replay(self, batch):
        """Seconds that a GPU takes for a batch, as a graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            batch()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = batch()
        graph.replay()
        times = []
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def measure(self, case):
        """Clocks by variant: eager, compile, graph."""
        if case["group"] == "training":
            return self.measure_training(case)
        if case["group"] == "transfers":
            return {"eager": self.clocks(self.transfer(case), max(case["calls"], 1), graph=False)}
        operation, dtype, count = OPERATIONS[case["operation"]], DTYPES[case["dtype"]], max(case["sets"], 1)
        first = [self.random(shape, dtype) for shape in case["shapes"]]
        # Multiples of one another, as ours.
        sets = [[x * (1 + n / 512) for x in first] for n in range(count)]
        on = lambda work: lambda run: work(*sets[run % count])
        with torch.no_grad():
            times = {"eager": self.clocks(on(operation), max(case["calls"], 1))}
            compiled = self.compiled(lambda: torch.compile(operation, dynamic=False), lambda work: work(*first), case)
            if compiled:
                times["compile"] = self.clocks(on(compiled), max(case["calls"], 1))
        return times

    def compiled(self, compile, call, case):
        """What torch.compile makes, once it has run; nothing where it fails or where its time is up."""
        if self.compile_left <= 0:
            return None
        start = time.perf_counter()
        try:
            torch._dynamo.reset()
            work = compile()
            call(work)
            call(work)
            return work
        except Exception as error:
            print(f"not compiled: {label(case)}: {str(error).splitlines()[0]}", file=sys.stderr)
            return None
        finally:
            self.compile_left -= time.perf_counter() - start

    def transfer(self, case):
        """Into memory that is there already, pageable on the host's side."""
        (shape,) = case["shapes"]
        host = [torch.randn(shape) for _ in range(4)]
        device = [x.to(self.device, copy=True) for x in host]
        if case["operation"] == "host to device":
            return lambda run: device[0].copy_(host[run % 4])
        return lambda run: host[0].copy_(device[run % 4])

    def measure_training(self, case):
        """Eager, with a compiled forward pass, and on a GPU the whole step as a graph."""
        batch, mixed = case["shapes"][0][0], case["dtype"] == "f16"
        xs = [self.random((batch, 784), torch.float32) for _ in range(8)]
        labels = torch.arange(batch, device=self.device) * 7 % 10

        def make(wrap=lambda loss: loss):
            layers = [torch.nn.Linear(*sides) for sides in [(784, 512), (512, 512), (512, 10)]]
            model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).to(self.device)
            capturable = {"capturable": True} if self.device == "cuda" else {}
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, **capturable)
            scaler = torch.amp.GradScaler(self.device, enabled=mixed)
            loss_of = wrap(lambda x: F.cross_entropy(model(x), labels))

            def step(x):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(self.device, torch.float16, enabled=mixed):
                    loss = loss_of(x)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                return loss.detach()

            return step

        calls = max(case["calls"], 1)
        on = lambda step: lambda run: step(xs[run % len(xs)])
        times = {"eager": self.clocks(on(make()), calls, graph=False)}
        wrap = lambda loss: torch.compile(loss, dynamic=False)
        step = self.compiled(lambda: make(wrap), lambda step: step(xs[0]), case)
        if step:
            times["compile"] = self.clocks(on(step), calls, graph=False)
        if self.device == "cuda":
            try:
                replays = self.clocks(on(self.captured(make(), xs[0])), calls, graph=False)
                times["graph"] = {"captured": replays["amortised"]}
            except RuntimeError as error:
                print(f"no graph of {label(case)}: {error}", file=sys.stderr)
        return times

    def captured(self, step, example):
        """A step as a CUDA graph, its input copied into place."""
        place = example.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(place)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step(place)

        def replay(x):
            place.copy_(x)
            graph.replay()
            return loss.clone()

        return replay


def best(variants, clock):
    """The shortest of PyTorch's times by a clock."""
    times = [times[clock] for times in variants.values() if clock in times]
    return min(times) if times else None


def table(results):
    """Markdown that can be read as it is."""
    clocks = [clock for clock in CLOCKS if any(best(theirs, clock) for _, theirs in results)]
    compiles = any("compile" in theirs for _, theirs in results)
    kinds = ["eager", *["compile"] * compiles, "ours", "ratio"]
    short = {"device": "dev.", "captured": "capt.", "amortised": "amort.", "synchronised": "sync."}
    heads = ["case"] + [f"{kind} {short[clock]}" for clock in clocks for kind in kinds]
    cells = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    say = lambda us: f"{us:.1f}" if us else "-"
    for case, theirs in results:
        line = [label(case)]
        for clock in clocks:
            ours, least = case["times"].get(clock, {}).get("median"), best(theirs, clock)
            of = lambda variant: theirs.get(variant, {}).get(clock)
            line.append(say(of("graph") or of("eager")))
            if compiles:
                line.append(say(of("compile")))
            line += [say(ours), f"{least / ours:.2f}" if least and ours else "-"]
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells)]
    pad = lambda at, text: text.ljust(widths[at]) if at == 0 else text.rjust(widths[at])
    return ["| " + " | ".join(pad(at, text) for at, text in enumerate(line)) + " |" for line in cells]


def summary(results):
    for clock in CLOCKS:
        pairs = [(best(theirs, clock), case["times"].get(clock, {}).get("median")) for case, theirs in results]
        ratios = [theirs / ours for theirs, ours in pairs if theirs and ours]
        if ratios:
            mean = math.exp(statistics.mean(map(math.log, ratios)))
            behind = sum(ratio < 0.95 for ratio in ratios)
            yield f"{clock}: geometric mean {mean:.2f}, behind in {behind} of {len(ratios)} cases"


def main():
    parser = argparse.ArgumentParser(description="TensorLogic beside PyTorch, on this machine")
    parser.add_argument("words", nargs="*", metavar="WORD", help="cases whose name contains one of these")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", action="append", default=[], choices=DTYPES, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="small cases, a few milliseconds each")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--compile-seconds", type=float, default=240, help="for all compilations: %(default)s")
    default = ROOT / "target/compare_torch"
    parser.add_argument("--output", type=pathlib.Path, default=default, help="writes FILE.md and FILE.json: %(default)s")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    run = measure_ours(arguments)
    cases = [case for case in run["cases"] if case["mode"] == "normal" and case["times"]]
    if not cases:
        sys.exit("the benchmark measured nothing")
    engine = Torch(arguments.device, arguments.compile_seconds if arguments.compile else 0)
    results = []
    for at, case in enumerate(cases):
        print(f"\r{at + 1}/{len(cases)} {label(case):<50}", end="", file=sys.stderr)
        try:
            theirs = engine.measure(case)
        except Exception as error:  # out of memory, say: the other cases still count
            print(f"\n{label(case)}: {error}", file=sys.stderr)
            theirs = {}
        results.append((case, theirs))
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    print(file=sys.stderr)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else run["machine"]["model"]
    threads = "" if arguments.device == "cuda" else f", {torch.get_num_threads()} threads"
    lines = [f"{name}, PyTorch {torch.__version__}{threads}; {run['machine']['date']}; microseconds of a call", ""]
    lines += [*table(results), "", *summary(results)]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    both = {"ours": run, "torch": [{"case": label(case), **theirs} for case, theirs in results]}
    arguments.output.with_suffix(".json").write_text(json.dumps({"version": torch.__version__, **both}, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
