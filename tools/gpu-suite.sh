#!/bin/bash
# Everything that only a GPU can show, from binaries that are built already: no cargo, a few minutes.
#
#   tools/gpu-suite.sh --build FOLDER       builds the binaries (needs cargo) and puts them into FOLDER, stripped
#   tools/gpu-suite.sh FOLDER [DEVICE]      runs them on DEVICE (default: cuda:0)
#
# FOLDER holds `it` (the integration tests), `lib` (the unit tests), `digits` (the example) and `bench` (the benchmark).
# A part whose binary or tool is missing is skipped; one that fails does not keep the others from running. The table
# comes last; the exit status is 1 if any part failed.
#
#   OUT            where an archive of FOLDER/logs goes, if set
#   SUITE_SECONDS  after which no part goes on      (default: 240)
#   FUZZ_SEEDS     programs of the fuzzers          (default: 400; each compiles its own kernels)
#   TL_CACHE_DIR   compiled kernels                 (default: FOLDER/cache)
set -uo pipefail
cd "$(dirname "$0")/.."

build() {
    local folder=$1 lines
    set -e
    mkdir -p "$folder"
    # Cargo says: Executable tests/it/main.rs (target/debug/deps/it-0123456789abcdef)
    lines=$({ cargo test --no-run --lib --test it && cargo bench --no-run --bench metal_performance; } 2>&1 | tee >(cat >&2))
    cargo build --release --example digits
    place() {
        local file
        file=$(sed -n "s|^ *Executable .*$1 (\(.*\))\$|\1|p" <<< "$lines")
        strip -o "$folder/$2" "$file"
    }
    place src/lib.rs lib
    place tests/it/main.rs it
    place benches/metal_performance.rs bench
    strip -o "$folder/digits" "${CARGO_TARGET_DIR:-target}/release/examples/digits"
    ls -l "$folder"
}

case ${1:-} in
    --build) build "${2:?which folder}"; exit ;;
    '' | -*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac

folder=$(cd "$1" && pwd) || exit 2
device=${2:-cuda:0}
logs=$folder/logs
seconds=${SUITE_SECONDS:-240}
cores=$(nproc)
export TL_DEVICES=$device TL_CACHE_DIR=${TL_CACHE_DIR:-$folder/cache}
mkdir -p "$logs" "$TL_CACHE_DIR"
table=() failed=0

# row PART PASSED FAILED SECONDS VERDICT
row() {
    table+=("$(printf '%-22s %7s %7s %8s  %s' "$@")")
    case $5 in ok* | skipped*) ;; *) failed=1 ;; esac
    echo "== $1: $5"
}

# within SECONDS LOG COMMAND...: runs it for so long, or as long as the suite has left; `took` says how long that was.
within() {
    local limit=$1 log=$2 start=$SECONDS status left=$((seconds - SECONDS))
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    [ "$limit" -ge 5 ] || limit=5
    timeout -k 5 "$limit" "$@" > "$log" 2>&1
    status=$?
    took=$((SECONDS - start))
    return $status
}

count() {
    grep -cE "$1" "$2"
}

# What an exit status means.
verdict() {
    case $1 in
        0) echo ok ;;
        124 | 137) echo "stopped for its time" ;;
        1[2-9]? | 2??) echo "crashed ($1)" ;;
        *) echo "FAILED ($1)" ;;
    esac
}

# tests NAME SECONDS BINARY ARGUMENT...: a test binary, and which tests failed.
tests() {
    local name=$1 limit=$2 binary=$folder/$3 log status passed bad says
    shift 3
    log=$logs/${name// /-}.log
    [ -x "$binary" ] || { row "$name" - - - "skipped: no $binary"; return; }
    if [ "$name" = fuzzer ]; then
        within "$limit" "$log" bash -c 'fuzz "$@"' fuzz "${FUZZ_SEEDS:-400}" "$log"
    elif [ "$name" = driver ]; then
        within "$limit" "$log" "$binary" --test-threads "$cores" "$@"
    else
        # A process a test: compilers in one process wait for one another.
        within "$limit" "$log" bash -c '"$0" --list "$@" 2> /dev/null | sed -n "s/: test\$//p" |
            xargs -P "$cores" -I{} "$0" --exact {}' "$binary" "$@"
    fi
    status=$?
    passed=$(count '^test .* \.\.\. ok' "$log") bad=$(count '^test .* \.\.\. FAILED' "$log")
    says=$(verdict $status)
    [ "$status/$passed" != 0/0 ] || says="FAILED: no such tests"
    row "$name" "$passed" "$bad" "$took" "$says"
    sed -n 's/^test \(.*\) \.\.\. FAILED.*/   \1/p' "$log"
    grep -m 6 -A 2 'panicked at' "$log" | cut -c 1-300
    [ "$status" = 0 ] || tail -n 3 "$log" | cut -c 1-300
}

# fuzz COUNT LOG: random programs and gradients, a share a process; no share so small that it says nothing.
fuzz() {
    local share=$((($1 + cores - 1) / cores)) from status=0 pids=() pid
    [ "$share" -ge 25 ] || share=25
    rm -f "$2".*
    for ((from = 0; from < $1; from += share)); do
        TL_FUZZ_SEEDS=$from..$((from + share)) "$folder/it" fuzz:: gradients::random:: > "$2.$from" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
    cat "$2".*
    rm "$2".*
    return $status
}
export -f fuzz
export folder cores

# Small tests over maps, rows, columns, products, gathers, scatters and attention.
small=(
    ops::on_every_device::numbers_stand_on_either_side
    reductions::on_every_device::variance_with_corrections
    reductions::on_every_device::far_from_zero_variance_is_accurate
    norms::on_every_device::softmax_of_extremes
    norms::on_every_device::squared_errors
    products::on_every_device::special_values_multiply
    products::on_every_device::batches_broadcast
    indexing::on_every_device::elements_are_gathered
    indexing::on_every_device::terms_are_added_where_indices_say
    views::on_every_device::parts_join
    attention::on_every_device::runs_agree_to_the_bit
    attention::on_every_device::queries_that_see_nothing
    transformers::on_every_device::appending_is_in_place
)

# sanitize TOOL: the small tests under compute-sanitizer. What it finds counts as failed.
sanitize() {
    local tool=$1 log=$logs/$1.log options=() sanitizer status passed bad found says
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) ||
        { row "$tool" - - - "skipped: no compute-sanitizer"; return; }
    [[ $device = cuda* ]] || { row "$tool" - - - "skipped: $device"; return; }
    # The driver turns failed calls into errors itself, and a query of an event that says "not ready" is none.
    [ "$tool" != memcheck ] || options=(--report-api-errors no)
    within 60 "$log" "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 99 "$folder/it" --test-threads 1 --exact "${small[@]}"
    status=$?
    passed=$(count '^test .* \.\.\. ok' "$log") bad=$(count '^test .* \.\.\. FAILED' "$log")
    found=$(count '========= (Error: |Warning: Race|Invalid|Misaligned|Program hit|Fatal)' "$log")
    says=$(verdict $status)
    [ $status != 99 ] || says="FAILED: it found something"
    # Few of the tests may be done in time: that counts if they are clean.
    case $status in 124 | 137) [ "$passed" = 0 ] || [ "$bad$found" != 00 ] || says="ok, $passed of ${#small[@]} in time" ;; esac
    [ "$status/$passed" != 0/0 ] || says="FAILED: no such tests"
    row "$tool" "$passed" "$((bad + found))" "$took" "$says"
    grep -m 12 '^=========' "$log" | cut -c 1-200
    [ $status = 0 ] || tail -n 3 "$log" | cut -c 1-300
}

# digits DTYPE: trains the example. It reaches 98% at its best.
digits() {
    local name="digits $1" log=$logs/digits-$1.log status accuracy says
    [ -x "$folder/digits" ] || { row "$name" - - - "skipped: no $folder/digits"; return; }
    within 40 "$log" "$folder/digits" --device "$device" --dtype "$1"
    status=$?
    accuracy=$(sed -n 's/^test accuracy: //p' "$log")
    says=$(verdict $status)
    if [ $status = 0 ]; then
        says="ok, accuracy $accuracy, $(sed -n 's/.* epochs in \(.*\), loss.*/\1/p' "$log")"
        awk -v a="$accuracy" 'BEGIN { exit !(a >= 0.95) }' || says="FAILED: accuracy $accuracy"
        row "$name" 1 0 "$took" "$says"
    else
        row "$name" 0 1 "$took" "$says"
        tail -n 3 "$log" | cut -c 1-300
    fi
}

finish() {
    printf '\n%-22s %7s %7s %8s  %s\n' part passed failed seconds verdict
    printf '%s\n' "${table[@]}"
    echo "logs: $logs, $SECONDS s in all"
    [ -z "${OUT:-}" ] || tar -czf "$OUT/gpu-suite.tar.gz" -C "$folder" logs
    exit $failed
}

echo "== environment"
{
    date -u
    uname -srm
    echo "$cores cores"
    command -v nvidia-smi compute-sanitizer
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    ldconfig -p | grep -E 'libcuda\.so|libnvrtc\.so|libcublasLt\.so'
    timeout 5 find /usr /opt \( -name 'libnvrtc.so*' -o -name 'libcublasLt.so*' \) 2> /dev/null | head -n 6
} 2>&1 | tee "$logs/environment.log"

# Tests on a device that is not there would pass: so the benchmark has to find it first.
if [ -x "$folder/bench" ]; then
    within 60 "$logs/device.log" "$folder/bench" --device "$device" "no such case"
    status=$?
    cat "$logs/device.log"
    if [ $status = 0 ]; then row device 1 0 "$took" ok; else row device 0 1 "$took" "FAILED: no $device"; finish; fi
fi

tests driver 60 lib device::cuda
tests operations 200 it --skip tidy:: --skip metal_text:: --skip gradients:: --skip fuzz::
tests gradients 120 it gradients:: --skip gradients::random::
tests fuzzer 60 it
for dtype in f32 f16 bf16; do digits $dtype; done
sanitize memcheck
sanitize racecheck
finish
