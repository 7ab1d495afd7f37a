#!/usr/bin/env bash
# Fuzzing that is guided by coverage, under AddressSanitizer: tests/fuzz.sh [-n RUNS] [-s SECONDS] [TARGET...]
# Without targets all of them, one after the other; each until RUNS inputs (10 million) or SECONDS (an hour) are over. An input that panics, takes longer than a second, or
# makes the process grow beyond 512 MiB ends it, and is kept in target/fuzz as TARGET-crash-..., for one more run: target/fuzz/run TARGET FOLDER FILE.
#
# Builds all dependencies once more, into target/sanitize/guided (about a quarter of an hour on two cores). x86-64 Linux; needs clang for libFuzzer.
# RUSTC_BOOTSTRAP is what lets a stable compiler use the sanitizer; nothing that is shipped is built so.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=10000000 seconds=3600
while getopts n:s: option; do
    case $option in
        n) runs=$OPTARG ;;
        s) seconds=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
targets=("$@")
(( $# )) || targets=(request template schema tekken sentencepiece huggingface answer gguf safetensors index config params session
    manifest signature audit calls)

target=x86_64-unknown-linux-gnu
fuzzer=$(clang --print-file-name=libclang_rt.fuzzer_no_main-x86_64.a)
[[ -f $fuzzer ]] || { echo "clang has no libFuzzer" >&2; exit 1; }
flags="-Zsanitizer=address --cfg guided -Cpasses=sancov-module -Clink-arg=$fuzzer -Clink-arg=-lstdc++"
for part in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$part"
done

# program PACKAGE TEST: builds it, and says where it is
program() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
        cargo test --release --target $target --target-dir target/sanitize/guided -p "$1" --test "$2" --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

# No leak checks while it runs: threads of pools are alive. ASan keeps what is freed for a while: not so much that it counts as growth.
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16:abort_on_error=1
failed=0
parsers=$(program mistral-core fuzz)
for name in "${targets[@]}"; do
    folder=target/fuzz/$name
    mkdir -p "$folder"
    limits=(-runs="$runs" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=512 -max_len=4096 -print_final_stats=1
        -artifact_prefix="target/fuzz/$name-")
    log=target/fuzz/$name.log
    if [[ $name == calls ]]; then
        FUZZ="$folder ${limits[*]}" "$(program mistral-ffi calls)" --ignored --nocapture guided_by_coverage >"$log" 2>&1 || failed=1
    else
        ln -sf "$parsers" target/fuzz/run
        "$parsers" "$name" "$folder" "${limits[@]}" >"$log" 2>&1 || failed=1
    fi
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
    echo "$name: ${executed:-?} inputs, ${covered:-no coverage}, ${peak:-?} MiB$(grep -qE 'ERROR|panicked' "$log" && echo ', FAILED: '"$log")"
done
exit $failed
