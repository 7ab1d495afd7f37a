#!/usr/bin/env python3
"""Mistral's tokenizers in this library and in those that they were made with, tiktoken and SentencePiece; prints ratios.

    pip install tiktoken sentencepiece
    cargo build --release -p mistral-ffi
    python3 benches/tokenizers.py [--repeat 9] [--size 1000000]

The files are those of the package mistral-common, fetched as the tests do. The documents are made of the texts of
tests/fixtures/tokenizer (22 languages and scripts, code, signs) and of this repository's own sources. Each round encodes a
document in one library and then in the other, so that a machine whose speed drifts slows both; every figure is the median
of the rounds, in seconds of the processor: each library uses one thread. Tokens are compared: a difference ends the run.
Opening is measured in processes of its own, by the clock; the memory is what the resident set grows by, at its peak and after
it (Linux). The last line is the same as JSON.
"""

import argparse
import base64
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "models" / "mistral-common-1.13.1"
TEKKEN = "tekken_240718.json"
SENTENCEPIECE = "mistral_instruct_tokenizer_240323.model.v3"

sys.path[:0] = [str(ROOT / "mistral-ffi" / "python"), str(ROOT / "tests" / "fixtures")]


def documents(size):
    """Documents of `size` bytes: prose in many scripts, code, and one script each."""
    texts = json.loads((ROOT / "tests/fixtures/tokenizer/vectors.json").read_text(encoding="utf-8"))["texts"]
    sources = sorted([*ROOT.glob("mistral-*/src/**/*.rs"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.md")])

    def of(parts):
        whole = "\n".join(parts).encode()
        whole *= 1 + size // len(whole)
        return whole[:size].decode(errors="ignore")

    return {
        "many scripts": of(texts),
        "code": of(path.read_text(encoding="utf-8") for path in sources),
        "English": of(line for path in sorted(ROOT.glob("*.md")) for line in path.read_text(encoding="utf-8").split("\n")),
        "Arabic": of(text for text in texts if any("\u0600" <= sign <= "\u06ff" for sign in text)),
    }


def tiktoken_encode(path):
    import tiktoken

    data = json.loads(path.read_text(encoding="utf-8"))
    config = data["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in data["vocab"][:count]}
    encoding = tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
    shift = config["default_num_special_tokens"]
    return encoding.encode_ordinary, shift, f"tiktoken {tiktoken.__version__}"


def sentencepiece_encode(path):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(str(path))
    return processor.EncodeAsIds, 0, f"sentencepiece {sentencepiece.__version__}"


def seconds(clock, call, *arguments):
    start = clock()
    result = call(*arguments)
    return clock() - start, result


def encoding(file, other, size, repeat):
    import mistral

    ours = mistral.Model(FILES / file, weights=False)
    theirs, shift, version = other(FILES / file)
    rows = []
    for name, text in documents(size).items():
        assert ours.encode(text) == [token + shift for token in theirs(text)], f"{file}: other tokens for {name}"
        times = [[seconds(time.process_time, call, text)[0] for call in (ours.encode, theirs)] for _ in range(repeat)]
        mine, other_time = (statistics.median(column) for column in zip(*times))
        megabytes = len(text.encode()) / 1e6
        rows.append(
            {
                "file": file,
                "other": version,
                "document": name,
                "mistral_MB_s": megabytes / mine,
                "other_MB_s": megabytes / other_time,
                "ratio": other_time / mine,
                "least_ratio": min(b / a for a, b in times),
            }
        )
    return rows


def open_once(file):
    """In a process of its own: seconds, and MiB that the resident set grows by."""
    import mistral

    mistral.load_library()

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    mistral.Model(FILES / SENTENCEPIECE, weights=False).close()
    before = resident()
    took, model = seconds(time.perf_counter, lambda: mistral.Model(FILES / file, weights=False))
    after = resident()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    model.encode("Hello")
    print(json.dumps({"seconds": took, "kept": after - before, "peak": peak - before}))


def opening(file, repeat):
    command = [sys.executable, __file__, "--open", file]
    runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeat)]
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {"file": file, "bytes": (FILES / file).stat().st_size, **median}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        return open_once(options.open)
    import fetch

    fetch.fetch(ROOT / "models")
    rows = encoding(TEKKEN, tiktoken_encode, options.size, options.repeat)
    rows += encoding(SENTENCEPIECE, sentencepiece_encode, options.size, options.repeat)
    print("| file | document | mistral, MB/s | other, MB/s | ratio | least |\n|---|---|---|---|---|---|")
    for row in rows:
        speeds = f"{row['mistral_MB_s']:.2f} | {row['other_MB_s']:.2f} ({row['other']})"
        print(f"| {row['file']} | {row['document']} | {speeds} | **{row['ratio']:.2f}×** | {row['least_ratio']:.2f}× |")
    opened = [opening(file, options.repeat) for file in (TEKKEN, "tekken_240911.json", SENTENCEPIECE)]
    print("\n| file | size, MB | open, s | memory kept, MB | at its peak, MB |\n|---|---|---|---|---|")
    for row in opened:
        figures = f"{row['seconds']:.3f} | {row['kept'] / 1e6:.1f} | {row['peak'] / 1e6:.1f}"
        print(f"| {row['file']} | {row['bytes'] / 1e6:.1f} | {figures} |")
    print(json.dumps({"encoding": rows, "opening": opened}))


if __name__ == "__main__":
    main()
