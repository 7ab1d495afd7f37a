#!/usr/bin/env bash
# Fuzzing that is guided by coverage, under AddressSanitizer: tests/fuzz.sh [-n RUNS] [-s SECONDS] [-j JOBS] [TARGET...]
# Without targets all of them, JOBS (1) beside each other; each until RUNS inputs (10 million, with those of the runs before), or SECONDS (a day) are over. An input that panics, takes
# longer than a second of the processor's time, or makes the process grow beyond 512 MiB ends it, and is kept in target/fuzz as TARGET-crash-..., for one more run: target/fuzz/run
# TARGET FOLDER FILE. What is found of use stays in target/fuzz/TARGET, where the next run goes on; target/fuzz/runs.txt has a line of each run.
#
# Builds all dependencies once more, into target/sanitize/guided (about a quarter of an hour on two cores). x86-64 Linux; needs clang for libFuzzer.
# RUSTC_BOOTSTRAP is what lets a stable compiler use the sanitizer; nothing that is shipped is built so.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=10000000 seconds=86400 jobs=1
while getopts n:s:j: option; do
    case $option in
        n) runs=$OPTARG ;;
        s) seconds=$OPTARG ;;
        j) jobs=$OPTARG ;;
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
# Numbers that are compared are not noted (a third of the time): words that a target knows are tried, and what memcmp sees.
for part in level=3 inline-8bit-counters pc-table; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$part"
done

# program PACKAGE TEST: builds it, and says where it is
program() {
    RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER=$PWD/tests/fuzz/rustc.sh RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
        cargo --config 'profile.release.package."*".opt-level=2' test --release --target $target --target-dir target/sanitize/guided -p "$1" --test "$2" --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

# The longest input of a target: what it needs for its structure, as time goes with length.
longest() {
    case $1 in
        calls) echo 48 ;;
        answer) echo 256 ;;
        template | schema) echo 512 ;;
        request | config | params | index) echo 2048 ;;
        *) echo 4096 ;;
    esac
}

# fuzz TARGET: runs it, and says what came of it
fuzz() {
    local name=$1 folder=target/fuzz/$1 log=target/fuzz/$1.log status=0 found before
    mkdir -p "$folder"
    before=$(awk -v name="$name:" '$1 == name { sum += $2 } END { print sum + 0 }' target/fuzz/runs.txt)
    (( before < runs )) || return 0
    # libFuzzer's weights of inputs (entropic) cost more than they find where there are many features.
    # What it does to look for leaks, which is nothing while ASan does not, costs a quarter, too.
    # Its time limit is the clock's, for what does not end; a second of the processor's is looked at by guided.rs.
    local limits=(-runs=$((runs - before)) -max_total_time="$seconds" -timeout=600 -report_slow_units=600 -rss_limit_mb=512 -max_len="$(longest "$name")" -entropic=0 -detect_leaks=0 -print_funcs=0 -print_final_stats=1
        -artifact_prefix="target/fuzz/$name-")
    if [[ $name == calls ]]; then
        FUZZ="$folder ${limits[*]}" "$calls" --ignored --nocapture guided_by_coverage >"$log" 2>&1 || status=1
    else
        "$parsers" "$name" "$folder" "${limits[@]}" >"$log" 2>&1 || status=1
    fi
    stat() { sed -n "s/^stat::$1: *//p" "$log"; }
    found="$name: $(stat number_of_executed_units) inputs, $(stat average_exec_per_sec) a second, $(grep -o 'cov: [0-9]*' "$log" | tail -1), $(stat peak_rss_mb) MiB"
    (( status == 0 )) || found+=", FAILED: $log"
    echo "$found" | tee -a target/fuzz/runs.txt
    return $status
}

# No leak checks while it runs: threads of pools are alive. ASan keeps what is freed for a while: not so much that it counts as growth. Where memory was allocated is not noted (a
# quarter of the time): one more run of what was found, without these options, says it.
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=4:abort_on_error=1:malloc_context_size=0:detect_stack_use_after_return=0
parsers=$(program mistral-core fuzz)
[[ " ${targets[*]} " != *" calls "* ]] || calls=$(program mistral-ffi calls)
mkdir -p target/fuzz
touch target/fuzz/runs.txt
ln -sf "$parsers" target/fuzz/run
failed=0 running=0
for name in "${targets[@]}"; do
    if (( running == jobs )); then
        wait -n || failed=1
        running=$((running - 1))
    fi
    fuzz "$name" &
    running=$((running + 1))
done
while (( running )); do
    wait -n || failed=1
    running=$((running - 1))
done
exit $failed
