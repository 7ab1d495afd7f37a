#!/usr/bin/env bash
# Coverage-guided fuzzing under AddressSanitizer: tests/fuzz.sh [--seconds N] [--runs N] [TARGET...]     (all targets, 60 seconds each)
# x86-64 Linux; needs a C++ compiler for libFuzzer. The first run builds all dependencies once more, into target/fuzz (about fifteen minutes on two cores).
#
# What was found lies in target/fuzz/found, the inputs that reach new code in target/fuzz/corpus, both by target; the numbers are appended to
# target/fuzz/runs.txt. An input runs alone with: FUZZ_TARGET=TARGET target/fuzz/x86_64-unknown-linux-gnu/release/mistral-fuzz FILE
#
# RUSTC_BOOTSTRAP lets a stable compiler instrument; nothing that is shipped is built so. An input that takes a second or 512 MiB is a find, too.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=x86_64-unknown-linux-gnu
out=target/fuzz
program=$out/$triple/release/mistral-fuzz
seconds=60 runs=-1 targets=()
while (($#)); do
    case $1 in
    --seconds) seconds=$2 && shift 2 ;;
    --runs) runs=$2 seconds=0 && shift 2 ;;
    --build) targets=(none) && shift ;;
    *) targets+=("$1") && shift ;;
    esac
done
((${#targets[@]})) || targets=(request template schema tekken sentencepiece huggingface answer
    gguf safetensors index config params session manifest signature audit calls)

coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares)
[[ -f fuzz/Cargo.lock ]] || cp Cargo.lock fuzz/Cargo.lock
RUSTC_BOOTSTRAP=1 RUSTFLAGS="${coverage[*]} -Zsanitizer=address -Ccodegen-units=4 --cfg fuzzing" \
    cargo build --release --manifest-path fuzz/Cargo.toml --target $triple --target-dir "$out"

failed=0
for target in "${targets[@]}"; do
    [[ $target != none ]] || continue
    corpus=$out/corpus/$target found=$out/found/$target log=$out/$target.log
    mkdir -p "$corpus" "$found"
    FUZZ_TARGET=$target FUZZ_SEEDS=$corpus "$program" -runs=0 >/dev/null 2>&1 || true
    status=0
    FUZZ_TARGET=$target ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$program" "$corpus" -artifact_prefix="$found/" \
        -max_total_time="$seconds" -runs="$runs" -timeout=1 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=16384 \
        -print_final_stats=1 -reload=0 >"$log" 2>&1 || status=$?
    count=$(awk '/number_of_executed_units/ { print $2 }' "$log")
    echo "$target: ${count:-?} executions, status $status" | tee -a "$out/runs.txt"
    ((status == 0)) || failed=1
done
exit $failed
