#!/usr/bin/env bash
# Checks the types and address spaces of kernels in Metal Shading Language with clang's front end for C++ for
# OpenCL, the nearest to Apple's compiler that other systems have: the compilers of C++ and CUDA C++ never see
# an address space.
#
#   tools/lint-shaders.sh                 every file of shaders/, and shaders/lint/
#   tools/lint-shaders.sh FILE|FOLDER...  those; of a folder all *.metal, as a run with TL_SOURCES=FOLDER leaves them
#   tools/lint-shaders.sh --self-test     holds the lint to what it must accept and reject
#
# A file without an #include line is a fragment: it is checked behind shaders/functors.metal and what it says itself
# ("// Behind matmul.metal and attention.metal."); and a file
# shaders/lint/X.metal, whose kernels use every template of shaders/X.metal, behind that. Sources of generated kernels
# are thousands of short texts behind the same shaders: those are read once for many kernels, a namespace each.
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

# What code generation puts between the shaders and the kernels.
mark='// ---- generated ----'

# marked NAME FILE: the text of a file; line markers keep the messages' places.
marked() {
    printf '\n#line 1 "%s"\n' "$1"
    sed -e 's/^ *# *include *<metal_stdlib>.*//' -e "\\|^$mark|q" "$2"
}

# A file with what it needs before it.
assemble() {
    local file=$1 before=() part
    if ! grep -q '^ *# *include' "$file"; then
        [ "$(basename "$file")" = functors.metal ] || before+=("$root/shaders/functors.metal")
        # Shaders say which ones they are written behind.
        for part in $(sed -n '/^\/\/ Behind /{s/.*Behind //; s/\.$//; s/ and / /g; p; q}' "$file"); do
            before+=("$root/shaders/$part")
        done
        case $(realpath "$file") in "$root"/shaders/lint/*) before+=("$root/shaders/$(basename "$file")") ;; esac
    fi
    for part in "$root/shaders/prelude/lint.h" "${before[@]}" "$file"; do marked "${part#"$root"/}" "$part"; done
}

# The kernels of files that have the same shaders before them. Kernels of one name clash in spite of their namespaces.
kernels() {
    awk -v mark="$mark" '
        FNR == 1 { if (part++) print "}"; inside = 0 }
        inside { sub(/^kernel void [A-Za-z0-9_]+/, "&_" part); print }
        $0 == mark { inside = 1; printf "namespace part_%d {\n#line %d \"%s\"\n", part, FNR + 1, FILENAME }
        END { print "}" }' "$@"
}

# Without the generic address space structures could not be copied. With it, a pointer that names no space is one to
# the generic space, which the compiler's tree shows: implicit members apart, nothing may be of such a type.
check() {
    "$clang" -x clcpp -cl-std=clc++2021 -target spir64 -fsyntax-only -cl-no-stdinc -fmacro-backtrace-limit=1 \
        -Wall -Wextra -Werror -Wno-unknown-attributes -Wno-undefined-internal -Wno-undefined-inline -Wno-unused-function \
        -Wno-unused-parameter -Wno-unused-variable -Wno-unused-const-variable -Wno-sign-compare \
        -Xclang -cl-ext=-cl_khr_fp64,-__opencl_c_fp64 -Xclang -ast-dump -fno-color-diagnostics "$1" >"$1.tree" || return 1
    awk '
        # Of the places in a line, of macros too, the last is where it is; "line" is of the file that was named last.
        {
            for (rest = $0; match(rest, /[^<> ]+:[0-9]+:[0-9]+/); rest = substr(rest, RSTART + RLENGTH)) {
                place = substr(rest, RSTART, RLENGTH)
                sub(/:[0-9]+$/, "", place)
                if (place ~ /^line:/) place = file substr(place, 5)
                file = place
                sub(/:[0-9]+$/, "", file)
            }
        }
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
        END { exit bad }' "$1.tree" >&2
}

# check_list LIST: files whose names are the lines of LIST. Names those with errors in LIST.bad.
check_list() {
    local files file
    mapfile -t files <"$1"
    if grep -qx "$mark" "${files[0]}"; then
        { assemble "${files[0]}" && kernels "${files[@]}"; } >"$1.cl"
    else
        assemble "${files[0]}" >"$1.cl"
    fi
    if ! check "$1.cl" 2>"$1.log"; then
        # An error in a template does not say whose kernel asked for it.
        for file in "${files[@]}"; do
            [ ${#files[@]} = 1 ] || { assemble "$file" && kernels "$file"; } >"$1.cl"
            check "$1.cl" 2>"$1.one" || { echo "$file" >>"$1.bad" && echo "In $file:" && cat "$1.one"; } >&2
        done
        [ -e "$1.bad" ] || { cat "$1.log" >&2 && echo "${files[*]}" >"$1.bad"; }
    fi
    rm -f "$1".{cl,cl.tree,log,one}
}
export root clang mark
export -f marked assemble kernels check check_list

# The names of files that are read, to lists in FOLDER: of at most 64 kernels behind the same shaders, each kernel once.
# Any other file is a list of its own.
make_lists() {
    awk -v folder="$1" -v mark="$mark\n" '
        {
            file = $0
            head = kernels = ""
            RS = mark
            getline head <file
            getline kernels <file
            close(file)
            RS = "\n"
            group = kernels == "" ? file : head
            if ((group, kernels) in seen) next
            seen[group, kernels]
            if (count[group]++ % 64 == 0) list[group] = folder "/" ++lists ".list"
            print file >>list[group]
            close(list[group])
        }'
}

# lint FILE|FOLDER...: on all cores.
lint() {
    local lists given bad
    lists=$(mktemp -d "$work/XXXXXX")
    for given in "$@"; do
        [ -r "$given" ] || fail "no file or folder $given"
        if [ -d "$given" ]; then find "$given" -name '*.metal' | sort; else echo "$given"; fi
    done >"$lists/found"
    # What is for one of NVIDIA's chips alone is none of Metal's affairs.
    xargs -d '\n' grep -L TlTensorMap <"$lists/found" >"$lists/all" || true
    [ -s "$lists/all" ] || fail "no files in $*"
    make_lists "$lists" <"$lists/all"
    find "$lists" -name '*.list' -print0 | xargs -0 -n 1 -P "$(nproc)" bash -c 'check_list "$1"' check_list
    bad=$(find "$lists" -name '*.bad' -exec cat {} + | wc -l)
    [ "$bad" = 0 ] || fail "$bad files have errors"
    echo "$(wc -l <"$lists/all") files ($(cat "$lists"/*.list | wc -l) different), no errors"
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
    assemble "$work/self.metal" >"$work/self.cl"
    check "$work/self.cl" >"$work/self.log" 2>&1 || got=rejects
    if [ "$got" != "$want" ]; then
        failures=$((failures + 1))
        echo "self-test: should have been a case of '$want': $name" && cat "$work/self.log"
    fi
}

# generated NUMBER STATEMENT: a kernel as code generation leaves it, behind one of two kinds of shaders.
generated() {
    local more=''
    [ $(($1 % 2)) = 0 ] || more='template <typename T> float tl_odd(T x) { return as_type<float>(x); }'
    echo "#include <metal_stdlib>
using namespace metal;
template <typename T> T tl_first(device const T* from) { return *from; }
$more
$mark
struct Args { float s; };
[[max_total_threads_per_threadgroup(256)]]
kernel void map_same(device float* b [[buffer(0)]], constant Args& args [[buffer(1)]]) {
    b[0] = tl_first(b + $(($1 % 140))) + args.s;
    $2
}" >"$work/generated/$1.metal"
}

# expect_named FILES NAME STATEMENT: whether of 280 generated kernels, 140 different ones, these are named if they have the
# statement, and no others.
expect_named() {
    local want=$1 name=$2 got i
    for i in $want; do generated "$i" "$3"; done
    (lint "$work/generated") >"$work/self.log" 2>&1 || true
    got=$(sed -n 's|^In .*/\([0-9]*\)\.metal:$|\1|p' "$work/self.log" | sort -n | xargs)
    [ -n "$want" ] || got=$(grep -vx '280 files (140 different), no errors' "$work/self.log" || true)
    if [ "$got" != "$want" ]; then
        failures=$((failures + 1))
        echo "self-test: of many kernels '$want' should have been named, not '$got': $name" && head -n 20 "$work/self.log"
    fi
    for i in $want; do generated "$i" ''; done
}

self_test() {
    local i
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
    mkdir "$work/generated"
    for i in {1..280}; do generated "$i" ''; done
    expect_named '' 'no error' ''
    expect_named '7' 'a wrong type' 'b[0] = tl_first(7);'
    expect_named '170' 'a pointer without device' 'float* p = b; p[0] = 1.0f;'
    expect_named '31 199' 'a wrong type in a template' 'b[1] = tl_odd(half(1.0f));'
    expect_named '64' 'a name of other shaders' 'b[1] = tl_odd(1);'
    expect_named '50' 'a brace too many' '}'
    [ "$failures" = 0 ] || fail "$failures failures of the self-test"
    echo "lint-shaders: self-test passed with $($clang --version | head -1)"
}

if [ "${1-}" = --self-test ]; then
    self_test
    exit
fi
[ $# -gt 0 ] || set -- "$root"/shaders/*.metal "$root/shaders/lint"
summary=$(lint "$@")
echo "lint-shaders: $summary ($($clang --version | head -1))"
