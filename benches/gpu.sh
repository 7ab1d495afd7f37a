#!/usr/bin/env bash
# Everything about the device `wgpu` on this machine, in one command and without a network: benches/gpu.sh [--vendored FOLDER] [--llama-bench PATH]
#     [--only tests|speed] [--device wgpu:N] [--shapes "1b 7b"] [--depths 0,2048] [--repeat N]
#
# Tests first (the kernels, the oracles, failures, SmolLM2 if its file is in models/), then speed on random weights of the shapes of a 1B and a 7B
# model. Cargo needs the sources of the dependencies: those that it has fetched before, or `--vendored`, a folder that `cargo vendor` wrote on a machine
# with a network. `--llama-bench` is llama.cpp's, built with Vulkan, for the same files. What it prints, with the name of the adapter, is what
# PERFORMANCE.md wants.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=(cargo --offline)
llama=""
device="wgpu"
shapes=(1b 7b)
repeat=3
depths=0,2048,8192
only=""
while [ $# -gt 0 ]; do
    case "$1" in
    --vendored) cargo+=(--config 'source.crates-io.replace-with="vendored"' --config "source.vendored.directory=\"$2\""); shift 2 ;;
    --llama-bench) llama="$2"; shift 2 ;;
    --device) device="$2"; shift 2 ;;
    --repeat) repeat="$2"; shift 2 ;;
    --depths) depths="$2"; shift 2 ;;
    --only) only="$2"; shift 2 ;;
    --shapes) read -ra shapes <<<"$2"; shift 2 ;; # `1b:2` is the shape with two layers
    *) echo "unknown argument $1" >&2; exit 1 ;;
    esac
done
flags=(-p mistral-core --features wgpu)

if [ "$only" != speed ]; then
    echo "== tests"
    "${cargo[@]}" test --release "${flags[@]}" --lib -- kernels device placement
    "${cargo[@]}" test --release "${flags[@]}" --test wgpu --test oracles
    if [ -f models/SmolLM2-135M-Instruct.Q4_1.gguf ]; then
        "${cargo[@]}" test --release "${flags[@]}" --test smollm2
    fi
fi
[ "$only" != tests ] || exit 0

echo "== speed on $device"
for shape in "${shapes[@]}"; do
    for format in Q4_0 Q8_0 Q4_K F16; do
        file="target/gpu-${shape/:/-}-$format.gguf"
        [ -f "$file" ] || "${cargo[@]}" run --release "${flags[@]}" --example random_model -- "$shape" "$format" "$file"
        echo "-- $shape $format"
        "${cargo[@]}" bench "${flags[@]}" --bench generation -- --model "$file" --device "$device" --depths "$depths" --repeat "$repeat"
        if [ -n "$llama" ]; then
            "$llama" -m "$file" -ngl 99 -p 512 -n 32 -r "$repeat"
        fi
        rm -f "$file"
    done
done
