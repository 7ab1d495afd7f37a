#!/usr/bin/env bash
# Runs the C programs of tests/c on a library built with a sanitizer: tests/sanitize.sh [address] [thread]
# Each builds all dependencies once more, into target/sanitize (about ten minutes on two cores). x86-64 Linux; needs cc and setarch.
#
# The sanitizers' runtimes come with Rust. RUSTC_BOOTSTRAP is what lets a stable compiler use them; nothing that is shipped is built so. The
# standard library itself is not instrumented: AddressSanitizer sees its allocations all the same, and tsan_edges.c says what ThreadSanitizer
# has to be told about it.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
runtimes=$(rustc --print sysroot)/lib/rustlib/$target/lib
out=target/sanitize
model=target/tmp/tiny.gguf

# sanitized SANITIZER COMMAND ARGUMENT...: cargo with that sanitizer
sanitized() {
    local sanitizer=$1 flags="-Zsanitizer=$1"
    shift
    # What std lacks of it is what tsan_edges.c is for.
    [[ $sanitizer != thread ]] || flags+=" -Cunsafe-allow-abi-mismatch=sanitizer"
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags -Cforce-frame-pointers=yes" \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
        cargo "$1" --release --target $target --target-dir "$out/$sanitizer" "${@:2}"
}

build() {
    sanitized "$1" rustc -p mistral-ffi --lib --crate-type staticlib -- --cfg sanitized
}

# compile NAME SANITIZER FILE...: tests/c/NAME.c with the library and the runtime
compile() {
    local name=$1 sanitizer=$2
    shift 2
    cc -std=c99 -O1 -g -Iinclude "tests/c/$name.c" "$@" "$out/$sanitizer/$target/release/libmistral.a" \
        -Wl,--whole-archive "$runtimes/librustc-stable_rt.${sanitizer:0:1}san.a" -Wl,--no-whole-archive \
        -rdynamic -lpthread -ldl -lm -lrt -lresolv -o "$out/$name-$sanitizer"
}

address() {
    export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1
    for name in interface refusals cancel forks stress; do compile $name address; done
    "$out/interface-address" $model target/tmp tests/fixtures/chat/tokenizer.model.v3
    "$out/refusals-address" $model
    "$out/cancel-address" $model
    "$out/forks-address" $model 50
    "$out/stress-address" $model 64 100
    "$out/stress-address" $model 64 100 '{"threads": 3, "quantize": "q4_0"}'
    # The unsafe code: kernels of every format and arm, and reading files that are damaged.
    sanitized address test -p mistral-core --lib -- --quiet kernels:: quant:: weights::
}

# The name of the function of std that is called and whose mangled name matches.
std() {
    nm "$out/thread/$target/release/libmistral.a" 2>/dev/null | awk -v pattern="$1" '$1 == "U" && $2 ~ pattern { found = $2 } END { print found }'
}

thread() {
    local flags=(tests/c/tsan_edges.c -Wl,--wrap=__tsan_atomic64_fetch_sub) name symbol
    for name in LOCK:mutex5futex.*14lock_contended READ:rwlock5futex.*14read_contended WRITE:rwlock5futex.*15write_contended \
        WAIT:7condvar5futex.*Condvar4wait ONCE:4once5futex.*4Once4call; do
        symbol=$(std "${name#*:}")
        [[ $symbol ]] || { echo "std has no ${name#*:}: has it changed?" >&2; exit 1; }
        flags+=("-D${name%%:*}=$symbol" "-Wl,--wrap=$symbol")
    done
    export TSAN_OPTIONS=halt_on_error=0:history_size=4
    for name in stress cancel; do
        compile $name thread "${flags[@]}"
    done
    # Its shadow memory has no place for addresses that are randomised as far as newer kernels do.
    setarch -R "$out/cancel-thread" $model
    setarch -R "$out/stress-thread" $model 64 100
    setarch -R "$out/stress-thread" $model 64 100 '{"threads": 3, "quantize": "q4_0"}'
}

cargo test --release -p mistral-ffi --test reliability -- --ignored --quiet write_the_tiny_model
for sanitizer in "${@:-address thread}"; do
    for one in $sanitizer; do
        build "$one"
        "$one"
        echo "$one: no error"
    done
done
