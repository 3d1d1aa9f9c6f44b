#!/bin/bash
# Type-checks the whole workspace for aarch64-apple-darwin on a Linux machine without a Mac, so that
# code behind cfg(target_os = "macos") cannot rot unseen.
#
#   tools/apple-check.sh              cargo check --workspace --all-targets
#   tools/apple-check.sh clippy       the same, with clippy; advisory, since it is not the pinned one
#   tools/apple-check.sh --self-test  whether a type error behind cfg(target_os = "macos") is found
#
# rustup has no standard library for Apple's targets where only Linux's is installed, but a check
# needs no linker and no SDK. The library's sources are enough, and Debian packages them
# (rust-web-src) together with the compiler that they belong to (rustc-web). Both are unpacked in a
# folder of their own: nothing is installed, and the project's own toolchain is not touched.
#
#   APPLE_CHECK_HOME    where the toolchain is kept    (default: ~/.cache/apple-check)
#   APPLE_CHECK_TARGET  where build products go        (default: target/apple)
set -euo pipefail
cd "$(dirname "$0")/.."

home=${APPLE_CHECK_HOME:-$HOME/.cache/apple-check}
target=$(realpath -m "${APPLE_CHECK_TARGET:-target/apple}")
packages=(rustc-web cargo-web rust-web-clippy rust-web-src)

download() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    mkdir -p "$home/debs/partial"
    "${as_root[@]}" apt-get -qq -o Acquire::Retries=3 update
    # --reinstall also fetches what happens to be installed, so that the folder is complete by itself.
    "${as_root[@]}" apt-get -qq -y --no-install-recommends --reinstall --download-only \
        -o Dir::Cache::archives="$home/debs" -o APT::Sandbox::User=root install "${packages[@]}"
}

unpack() {
    local deb
    for deb in "$home"/debs/*.deb; do
        case $deb in
            # Only the library: the compiler's own sources are ten times its size.
            */rust-web-src_*) dpkg --fsys-tarfile "$deb" | tar -x -C "$home" --wildcards --no-wildcards-match-slash \
                './usr/lib/rustlib/src' './usr/src/rustc-*/library' ;;
            *) dpkg -x "$deb" "$home" ;;
        esac
    done
    rm -rf "$home/debs"
}

# The mark comes last: a run that was cut short starts over.
if [ ! -e "$home/complete" ]; then
    echo "apple-check: fetching ${packages[*]}"
    rm -rf "$home"
    download
    unpack
    touch "$home/complete"
fi

# The multiarch folder holds LLVM and the compiler's driver. Building the standard library is an
# unstable option, hence RUSTC_BOOTSTRAP.
libraries=("$home"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=${libraries[0]} PATH=$home/usr/bin:$PATH RUSTC=$home/usr/bin/rustc RUSTC_BOOTSTRAP=1
# rustup names its toolchain's compiler in these; a wrapper of the caller's would not know this one.
unset RUSTUP_TOOLCHAIN RUSTC_WRAPPER RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
# Nothing of this is ever run, so the compiler may take the quickest way through the library.
export CARGO_PROFILE_DEV_DEBUG=0
quick='profile.dev.package."*".opt-level=0'

check() {
    cargo "$1" -Zbuild-std --config "$quick" --target aarch64-apple-darwin --target-dir "$target" \
        --workspace --all-targets --features soft-metal
}

# Checks a copy with an error that only macOS has. Always in the same folder, or build products would pile up.
self_test() {
    local copy=$target/self-test log=$target/self-test.log
    rm -rf "$copy"
    mkdir -p "$copy"
    git ls-files -z | xargs -0 cp --parents -t "$copy"
    printf '\n#[cfg(target_os = "macos")]\nfn seeded() -> u32 {\n    "no number"\n}\n' >> "$copy/src/device/mod.rs"
    if (cd "$copy" && check check) > "$log" 2>&1; then
        echo "apple-check: the self-test's error was not found" >&2
        exit 1
    fi
    rm -rf "$copy"
    if ! grep -A 1 'E0308.*mismatched types' "$log" | grep -q 'src/device/mod.rs:' || ! grep -q '"no number"' "$log"; then
        cat "$log" >&2
        echo "apple-check: the self-test failed for another reason than its error" >&2
        exit 1
    fi
    echo "apple-check: the self-test's error was found"
}

rustc --version
case ${1:-check} in
    --self-test) self_test ;;
    check | clippy) check "${1:-check}" ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
