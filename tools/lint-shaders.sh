#!/usr/bin/env bash
# Checks the types and address spaces of kernels in Metal Shading Language with clang's front end for C++ for
# OpenCL, the nearest to Apple's compiler that other systems have: the compilers of C++ and CUDA C++ never see
# an address space.
#
#   tools/lint-shaders.sh                 every file of shaders/, and shaders/lint/
#   tools/lint-shaders.sh FILE|FOLDER...  those; of a folder all *.metal, as a run with generated kernels leaves them
#   tools/lint-shaders.sh --self-test     holds the lint to what it must accept and reject
#
# A file without an #include line is a fragment: it is checked behind shaders/functors.metal; and a file
# shaders/lint/X.metal, whose kernels use every template of shaders/X.metal, behind that.
# Needs clang++ 14 or later (CLANGXX names another); without one it says so and fails.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "lint-shaders: $*" >&2
    exit 1
}

find_clang() {
    local name version
    for name in ${CLANGXX:-clang++ $(printf "clang++-%d " {22..14})}; do
        version=$("$name" -dumpversion 2>/dev/null | cut -d. -f1) || continue
        if [ "${version:-0}" -ge 14 ] && ! "$name" --version | grep -q Apple; then
            echo "$name"
            return
        fi
    done
    fail "needs clang++ 14 or later (Debian: apt install clang)"
}
clang=$(find_clang)

# The text of a file with what it needs before it; line markers keep the messages' places.
assemble() {
    local file=$1 before=()
    if ! grep -q '^ *# *include' "$file"; then
        [ "$(basename "$file")" = functors.metal ] || before+=("$root/shaders/functors.metal")
        case $(realpath "$file") in "$root"/shaders/lint/*) before+=("$root/shaders/$(basename "$file")") ;; esac
    fi
    local part
    for part in "$root/shaders/prelude/lint.h" "${before[@]}" "$file"; do
        printf '\n#line 1 "%s"\n' "${part#"$root"/}"
        sed 's/^ *# *include *<metal_stdlib>.*//' "$part"
    done
}

# Without the generic address space structures could not be copied. With it, a pointer that names no space is one to
# the generic space, which the compiler's tree shows: implicit members apart, nothing may be of such a type.
check() {
    assemble "$1" >"$work/text.cl"
    "$clang" -x clcpp -cl-std=clc++2021 -target spir64 -fsyntax-only -cl-no-stdinc -fmacro-backtrace-limit=1 \
        -Wall -Wextra -Werror -Wno-unknown-attributes -Wno-undefined-internal -Wno-undefined-inline -Wno-unused-function \
        -Wno-unused-parameter -Wno-unused-variable -Wno-unused-const-variable -Wno-sign-compare \
        -Xclang -cl-ext=-cl_khr_fp64,-__opencl_c_fp64 -Xclang -ast-dump -fno-color-diagnostics "$work/text.cl" >"$work/tree" || return 1
    awk '
        match($0, /[^<> ]+\.(metal|h|cl):[0-9]+:/) { file = place = substr($0, RSTART, RLENGTH - 1); sub(/:[0-9]+$/, "", file) }
        match($0, /line:[0-9]+:/) { place = file ":" substr($0, RSTART + 5, RLENGTH - 6) }
        { depth = match($0, /[A-Za-z<]/) }
        skipped && depth > skipped { next }
        { skipped = /(Constructor|Method|Destructor|Record)Decl .* implicit / ? depth : 0 }
        !/<invalid sloc>/ && /(VarDecl|FieldDecl|CStyleCastExpr|FunctionalCastExpr|ReinterpretCastExpr|StaticCastExpr) / {
            split($0, parts, "\047")
            type = parts[2]
            if (type ~ /__generic/ || (type ~ /[*&]/ && type !~ /__(global|local|constant|private)/)) {
                message = place ": error: a pointer or reference without an address space: \047" type "\047"
                if (!seen[message]++) print message
                bad = 1
            }
        }
        END { exit bad }' "$work/tree" >&2
}

# accepts|rejects NAME STATEMENTS: whether a kernel with these statements passes.
failures=0
expect() {
    local want=$1 name=$2 got=accepts
    cat >"$work/self.metal" <<METAL
template <typename T> T tl_self(device const T* from) { return *from; }
template <typename T> T tl_same(T x) { T y = x; return y; }
$([[ $3 != *spaceless* ]] || echo 'template <typename T> void tl_spaceless(T* at) { *at = T(0); }')
struct Args { device half* p; long n; float s; };
struct Epilogue {
    device half* out;
    constant Args* args;
    void operator()(uint row, uint col, float sum) const { out[row + col] = half(sum + args->s); }
};
kernel void self_test(device float* x [[buffer(0)]], device half* h [[buffer(1)]], constant Args& args [[buffer(2)]],
                      uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {
    threadgroup float shared[32];
    shared[index] = 0.0f;
    $3
}
METAL
    check "$work/self.metal" >"$work/self.log" 2>&1 || got=rejects
    if [ "$got" != "$want" ]; then
        failures=$((failures + 1))
        echo "self-test: should have been a case of '$want': $name" && cat "$work/self.log"
    fi
}

self_test() {
    expect accepts 'pointers of the right spaces' 'shared[index] = tl_self(x) + float(h[0]); threadgroup float* p = shared; h[1] = half(p[group.x]);'
    expect accepts 'accesses of 16 bytes' '*(threadgroup uint4*)shared = *(device const uint4*)h; *(device half4*)h = half4(h[0], h[1], h[2], h[3]);'
    expect accepts 'an epilogue' 'Epilogue e = {args.p, &args}; e(1, 2, shared[0]);'
    expect accepts 'matrices' 'simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(0.0f); simdgroup_store(m, shared, 8);'
    expect accepts 'structures by value' 'Epilogue e = {h, &args}, f = e; f = tl_same(e); f(1, 2, 3.0f);'
    expect rejects 'a parameter without a space' 'tl_spaceless(&shared[1]);'
    expect rejects 'a reference without a space' 'float& y = x[1]; y = 1.0f;'
    expect rejects 'a cast without a space' 'x[1] = *(float*)(h + 2);'
    expect rejects 'a pointer without thread' 'float y = 1; float* p = &y; x[0] = *p;'
    expect rejects 'a pointer without device' 'float* p = x; p[0] = 1.0f;'
    expect rejects 'a pointer without threadgroup' 'float* p = shared; p[0] = 1.0f;'
    expect rejects 'double' 'double y = 1; x[0] = float(y);'
    expect rejects 'a literal of double' 'x[0] = x[0] * 0.1;'
    expect rejects 'a cast between address spaces' 'threadgroup float* p = (threadgroup float*)x; p[0] = 1.0f;'
    expect rejects 'an address of another space' 'device float* p = shared; p[0] = 1.0f;'
    expect rejects 'a store to constant memory' 'args.n = 3;'
    expect rejects 'arithmetic on halves' 'h[0] = h[0] + h[1];'
    expect rejects 'a silent conversion to half' 'h[0] = 1.0f;'
    expect rejects 'a silent conversion from half' 'x[0] = h[0];'
    expect rejects 'threadgroup memory in an inner scope' 'if (index == 0) { threadgroup float inner[4]; inner[0] = 1.0f; }'
    expect rejects 'as_type of another size' 'h[0] = as_type<half>(x[0]);'
    expect rejects 'an unknown name' 'x[0] = simd_sum(x[0]);'
    [ "$failures" = 0 ] || fail "$failures failures of the self-test"
    echo "lint-shaders: self-test passed with $($clang --version | head -1)"
}

if [ "${1-}" = --self-test ]; then
    self_test
    exit
fi
[ $# -gt 0 ] || set -- "$root"/shaders/*.metal "$root/shaders/lint"
files=0 bad=0
while IFS= read -r file; do
    files=$((files + 1))
    check "$file" || bad=$((bad + 1))
done < <(for given in "$@"; do
    if [ -d "$given" ]; then find "$given" -name '*.metal' | sort; else echo "$given"; fi
done)
[ "$bad" = 0 ] || fail "$bad of $files files have errors"
echo "lint-shaders: $files files, no errors ($($clang --version | head -1))"
