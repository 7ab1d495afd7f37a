#!/usr/bin/env bash
# Everything about the device `wgpu` on this machine, in one command and without a network: benches/gpu.sh [--vendored FOLDER | --programs FOLDER]
#     [--llama-bench PATH] [--only tests|speed] [--device wgpu:N] [--shapes "1b 7b"] [--formats "Q4_0 Q8_0"] [--depths 0,2048] [--repeat N]
#
# Tests first (the kernels, the oracles, failures, SmolLM2 if its file is in models/), then speed: the kernels by themselves, and random weights of the shapes of a
# 1B and a 7B model. Cargo needs the sources of the dependencies: those that it has fetched before, or `--vendored`, a folder that `cargo vendor` wrote on
# a machine with a network. Where there is no Cargo, `--programs` takes what `benches/gpu.sh --pack FOLDER` built elsewhere; the repository must lie (or be
# linked) where it lay then, for the tests' fixtures. `--llama-bench` is llama.cpp's, built with Vulkan, for the same files. What it prints, with the name of the
# adapter, is what PERFORMANCE.md wants.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=(cargo --offline)
programs=""
pack=""
llama=""
device="wgpu"
shapes=(1b 7b)
formats=(Q4_0 Q8_0 Q4_K F16)
repeat=3
depths=0,2048,8192
only=""
while [ $# -gt 0 ]; do
    case "$1" in
    --vendored) cargo+=(--config 'source.crates-io.replace-with="vendored"' --config "source.vendored.directory=\"$2\""); shift 2 ;;
    --programs) programs="$2"; shift 2 ;;
    --pack) pack="$2"; shift 2 ;;
    --llama-bench) llama="$2"; shift 2 ;;
    --device) device="$2"; shift 2 ;;
    --repeat) repeat="$2"; shift 2 ;;
    --depths) depths="$2"; shift 2 ;;
    --only) only="$2"; shift 2 ;;
    --shapes) read -ra shapes <<<"$2"; shift 2 ;; # `1b:2` is the shape with two layers
    --formats) read -ra formats <<<"$2"; shift 2 ;;
    *) echo "unknown argument $1" >&2; exit 1 ;;
    esac
done
tests=(--lib --test wgpu --test oracles --test smollm2)
others=(--bench generation --bench adapter --example random_model)

# The programs, each under its name: built here, in the folder that Cargo says, or before.
if [ -z "$programs" ]; then
    programs="${pack:-target/gpu}"
    mkdir -p "$programs"
    crate=(--release -p mistral-core --features wgpu --message-format json)
    "${cargo[@]}" test --no-run "${crate[@]}" "${tests[@]}" >"$programs/build.json"
    "${cargo[@]}" build "${crate[@]}" "${others[@]}" >>"$programs/build.json"
    sed -n 's/.*"target":{[^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' "$programs/build.json" | while read -r name file; do
        strip -o "$programs/$name" "$file"
    done
    rm "$programs/build.json"
fi
[ -z "$pack" ] || exit 0
run() { echo "+ $*" >&2; "$programs/$@"; }

if [ "$only" != speed ]; then
    echo "== tests"
    run mistral_core kernels device placement
    run wgpu
    run oracles
    if [ -f models/SmolLM2-135M-Instruct.Q4_1.gguf ]; then
        run smollm2
    fi
fi
[ "$only" != tests ] || exit 0

echo "== speed on $device"
run adapter --device "$device" --repeat "$repeat" --formats "$(IFS=,; echo "${formats[*]}")"
for shape in "${shapes[@]}"; do
    for format in "${formats[@]}"; do
        file="target/gpu-${shape/:/-}-$format.gguf"
        mkdir -p target
        [ -f "$file" ] || run random_model "$shape" "$format" "$file"
        echo "-- $shape $format"
        run generation --model "$file" --device "$device" --depths "$depths" --repeat "$repeat"
        if [ -n "$llama" ]; then
            "$llama" -m "$file" -ngl 99 -p 512 -n 32 -r "$repeat"
        fi
        rm -f "$file"
    done
done
