#!/usr/bin/env python3
"""TensorLogic beside PyTorch, eager, on this machine: one run measures both.

    python3 tools/compare_torch.py [--device cuda] [WORD...]

Runs `cargo bench --bench metal_performance -- --json FILE WORD...`, which says what it measured, and
then the same operations on the same shapes in PyTorch (`pip install torch`). Microseconds; a ratio above 1
means that PyTorch took longer. `TL_BENCH=FILE` names a benchmark that is built already, for machines without
cargo.

On the CPU: medians of single calls. On a GPU three times, each measured in the same way on both sides: on the
device (PyTorch: the replay of a graph of the calls; ours: the device's clock around calls that queue up), amortised
(calls one after another, one wait) and synchronised (a wait after each call).
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
SECONDS = 0.5
ROTATED_BYTES = 64 << 20

# On a GPU: seconds for all of our cases, for the synchronised calls of a case, and batches that are timed.
BENCH_SECONDS = 150
SYNCHRONISED_SECONDS = 0.1
ROUNDS = 5


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


def chain(x, scale, shift, offset):
    """The twenty ops of benches/common/cases.rs."""
    for _ in range(5):
        x = torch.tanh(x * scale + shift) + offset
    return x


def layer_norm(x, weight, bias):
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, 1e-5)


OPERATIONS = {
    "matmul": torch.matmul,
    "add": torch.add,
    "mul": torch.mul,
    "sum": torch.sum,
    "relu": torch.relu,
    "gelu": gelu,
    "chain of 20": chain,
    "softmax": lambda x: torch.softmax(x, 1),
    "layer norm": layer_norm,
    "rms norm": lambda x, weight: torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5),
    "column sum": lambda x: torch.sum(x, 0),
    "gelu(matmul)": lambda a, b: gelu(a @ b),
    "relu(matmul)": lambda a, b: torch.relu(a @ b),
    "relu(a+b)": lambda a, b: torch.relu(a + b),
    "a*s+b": lambda a, s, b: a * s + b,
    "sum((a-b)^2)": lambda a, b: torch.sum((a - b) ** 2),
    "transpose": lambda x: x.t().contiguous(),
}


def measure_ours(arguments):
    """The rows that the benchmark writes: operation, dtype, shapes and times. On a GPU it may fail on the way: what it
    has written until then counts."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        built = os.environ.get("TL_BENCH")
        bench = [built] if built else ["cargo", "bench", "--bench", "metal_performance", "--"]
        command = [*bench, "--json", file.name, *arguments.words]
        if arguments.device == "cpu":
            command += ["--device", "cpu"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            return json.load(file)
        command += ["--device", arguments.device]
        try:
            limit = BENCH_SECONDS if built else None
            code = subprocess.run(command, cwd=ROOT, timeout=limit).returncode
            failure = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            failure = f"stopped after {BENCH_SECONDS} s"
        if failure:
            print(f"the benchmark: {failure}", file=sys.stderr)
        return json.loads(pathlib.Path(file.name).read_text() or "[]")


def measure_torch(row):
    """Median time of one call, in microseconds, over random inputs that take turns.

    One call may be all there is: bf16 products take seconds on a processor without bf16 arithmetic.
    """
    call, dtype = OPERATIONS[row["operation"]], DTYPES[row["dtype"]]
    inputs = lambda: [torch.randn(shape, dtype=dtype) for shape in row["shapes"]]
    first = inputs()
    count = ROTATED_BYTES // sum(x.numel() * x.element_size() for x in first)
    sets = [first] + [inputs() for _ in range(min(max(count, 2), 8) - 1)]
    times = []
    for run in range(10_000):
        start = time.perf_counter()
        call(*sets[run % len(sets)])
        times.append(time.perf_counter() - start)
        if sum(times) > SECONDS:
            break
    return statistics.median(times[len(times) // 4 :]) * 1e6


def measure_torch_cuda(row):
    """Times of one call, in microseconds: as many calls on as many sets of inputs as the benchmark took."""
    call, dtype = OPERATIONS[row["operation"]], DTYPES[row["dtype"]]
    calls, count = row.get("calls", 8), row.get("sets", 2)
    sets = [[torch.randn(shape, dtype=dtype, device="cuda") for shape in row["shapes"]] for _ in range(count)]

    def batch():
        return [call(*sets[run % count]) for run in range(calls)]

    def wall(work):
        torch.cuda.synchronize()
        start = time.perf_counter()
        kept = work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6

    wall(batch)  # finds its memory
    amortised = statistics.median(wall(batch) for _ in range(ROUNDS)) / calls
    end, synchronised = time.perf_counter() + SYNCHRONISED_SECONDS, []
    while len(synchronised) < 3 or time.perf_counter() < end:
        synchronised.append(wall(lambda: call(*sets[len(synchronised) % count])))
    times = {"amortised_us": amortised, "synchronised_us": statistics.median(synchronised)}
    torch.cuda.empty_cache()
    try:
        times["device_us"] = replay(batch) / calls
    except RuntimeError as error:
        print(f"no graph of {label(row)}: {error}", file=sys.stderr)
    return times


def replay(batch):
    """Microseconds that the device takes for a batch, as a graph."""
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
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def label(row):
    shapes = " ".join("x".join(map(str, shape)) for shape in row["shapes"][:2])
    return f"{row['operation']} {row['dtype']} {shapes}"


def compare_cpu(arguments):
    rows = measure_ours(arguments)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'case':<44}{'torch us':>12}{'ours us':>12}{'ratio':>8}")
    for row in rows:
        theirs, ours = measure_torch(row), row["us"]
        print(f"{label(row):<44}{theirs:>12.1f}{ours:>12.1f}{theirs / ours:>8.2f}", flush=True)


TIMES = ["device_us", "amortised_us", "synchronised_us"]


def compare_cuda(arguments):
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    rows, results = measure_ours(arguments), []
    if not rows:
        sys.exit("the benchmark measured nothing")
    for row in rows:
        try:
            theirs = measure_torch_cuda(row)
        except Exception as error:  # out of memory, say: the other cases still count
            print(f"{label(row)}: {error}", file=sys.stderr)
            theirs = {}
        torch.cuda.empty_cache()
        results.append((row, theirs))
    lines = [f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; microseconds of a call", ""]
    lines += table(results)
    for time_of in TIMES[:2]:
        ratios = [theirs[time_of] / row[time_of] for row, theirs in results if time_of in row and time_of in theirs]
        if ratios:
            mean = math.exp(statistics.mean(map(math.log, ratios)))
            slower = sum(ratio < 0.95 for ratio in ratios)
            lines += ["", f"{time_of[:-3]}: geometric mean {mean:.2f}, behind in {slower} of {len(ratios)} cases"]
    arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
    arguments.markdown.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def table(results):
    """Markdown that can be read as it is."""
    heads = ["case"] + [f"{who} {time_of[:-3]}" for time_of in TIMES for who in ["torch", "ours", "ratio"]]
    heads = [head.replace("synchronised", "sync").replace("amortised", "amort") for head in heads]
    cells = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row, theirs in results:
        cell = [label(row)]
        for time_of in TIMES:
            torchs, ours = theirs.get(time_of), row.get(time_of)
            ratio = f"{torchs / ours:.2f}" if torchs and ours else "-"
            cell += [f"{torchs:.1f}" if torchs else "-", f"{ours:.1f}" if ours else "-", ratio]
        cells.append(cell)
    widths = [max(map(len, column)) for column in zip(*cells)]
    pad = lambda at, text: text.ljust(widths[at]) if at == 0 else text.rjust(widths[at])
    return ["| " + " | ".join(pad(at, text) for at, text in enumerate(line)) + " |" for line in cells]


def main():
    parser = argparse.ArgumentParser(description="TensorLogic beside PyTorch, on this machine")
    parser.add_argument("words", nargs="*", metavar="WORD", help="cases whose operation, size or dtype contains one")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    default = ROOT / "target/compare_torch.md"
    parser.add_argument("--markdown", type=pathlib.Path, default=default, help="file for a GPU's table: %(default)s")
    arguments = parser.parse_args()
    with torch.inference_mode():
        compare_cpu(arguments) if arguments.device == "cpu" else compare_cuda(arguments)


if __name__ == "__main__":
    main()
