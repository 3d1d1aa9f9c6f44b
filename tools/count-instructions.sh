#!/bin/bash
# Instructions that the host takes to record an op and to run a known plan, counted by callgrind and held against
# tools/instructions.txt. Times vary with the machine and its load, instructions hardly.
#
#   tools/count-instructions.sh               fails if a path takes over 10% more than it is allowed
#   tools/count-instructions.sh --write       writes tools/instructions.txt anew
#   tools/count-instructions.sh --self-test   fails unless a seeded slowdown is found
#
# Without valgrind nothing is counted, and the exit status is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
reference=tools/instructions.txt
tolerance=10
count=1000
paths=(record record-number plan-hit plan-hit-of-20)

case ${1:-} in '' | --write | --self-test) ;; *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;; esac
command -v valgrind > /dev/null || { echo "skipped: no valgrind"; exit 0; }
cargo build --release -p tensorlogic-bench --example host_path
program=${CARGO_TARGET_DIR:-target}/release/examples/host_path

# collected ARGUMENT...: instructions of a run, the least of a few, since the seeds of hash tables differ by process. One
# thread, and the instruction set that valgrind knows best.
collected() {
    local _
    for _ in 1 2 3 4 5; do
        TL_NUM_THREADS=1 TL_ISA=plain valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 |
            sed -n 's/.*Collected : //p'
    done | sort -n | head -n 1
}

# instructions PATH [slow]: of one time through it, the start of the process left out.
instructions() {
    local once twice
    once=$(collected "$1" $count "${@:2}")
    twice=$(collected "$1" $((2 * count)) "${@:2}")
    echo $(((twice - once) / count))
}

# held PATH NUMBER: whether that is allowed.
held() {
    local allowed
    allowed=$(awk -v path="$1" '$1 == path { print $2 }' $reference)
    [ -n "$allowed" ] || { echo "$1: not in $reference" >&2; return 1; }
    printf '%-16s %8d instructions, %d allowed (and %d%%)\n' "$1" "$2" "$allowed" $tolerance
    [ $((100 * $2)) -le $(((100 + tolerance) * allowed)) ]
}

case ${1:-} in
    --write)
        for path in "${paths[@]}"; do echo "$path $(instructions "$path")"; done > $reference
        cat $reference
        ;;
    --self-test)
        for path in record plan-hit; do
            ! held "$path" "$(instructions "$path" slow)" || { echo "a slowdown of $path by an eighth was not found"; exit 1; }
        done
        echo "slowdowns by an eighth were found"
        ;;
    *)
        failed=0
        for path in "${paths[@]}"; do held "$path" "$(instructions "$path")" || { echo "$path: more than allowed"; failed=1; }; done
        exit $failed
        ;;
esac
