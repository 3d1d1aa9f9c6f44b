#!/usr/bin/env python3
"""TensorLogic beside PyTorch, eager, on this machine's CPU: one run measures both.

    python3 tools/compare_torch.py [WORD...]

Runs `cargo bench --bench metal_performance -- --json FILE WORD...`, which says what it measured, and
then the same operations on the same shapes in PyTorch (`pip install torch`). Medians, in microseconds;
a ratio above 1 means that PyTorch took longer. `TL_BENCH=FILE` names a benchmark that is built already, for
machines without cargo.
"""

import json
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
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "chain of 20": chain,
    "softmax": lambda x: torch.softmax(x, 1),
    "layer norm": layer_norm,
}


def measure_ours(words):
    """The rows that the benchmark writes: operation, dtype, shapes and us."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        built = os.environ.get("TL_BENCH")
        bench = [built] if built else ["cargo", "bench", "--bench", "metal_performance", "--"]
        command = [*bench, "--json", file.name, *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.load(file)


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


def label(row):
    shapes = " ".join("x".join(map(str, shape)) for shape in row["shapes"][:2])
    return f"{row['operation']} {row['dtype']} {shapes}"


def main():
    rows = measure_ours(sys.argv[1:])
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'case':<44}{'torch us':>12}{'ours us':>12}{'ratio':>8}")
    with torch.inference_mode():
        for row in rows:
            theirs, ours = measure_torch(row), row["us"]
            print(f"{label(row):<44}{theirs:>12.1f}{ours:>12.1f}{theirs / ours:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
