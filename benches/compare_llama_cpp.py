#!/usr/bin/env python3
"""The same file in mistral and in llama.cpp, one after the other, on the same threads; prints ratios.

    pip install llama-cpp-python        # builds llama.cpp for this processor
    cargo build --release -p mistral-ffi
    python3 benches/compare_llama_cpp.py MODEL.gguf [MODEL.gguf ...] [--threads 2] [--repeat 5] [--formats Q4_0,Q8_0]

`--formats` makes copies of each model in those formats, beside it, with llama.cpp's own quantiser.

Each round opens the model anew in a process of its own, first in one library and then in the other, so that a machine whose
speed drifts slows both. Every figure is the median of the rounds, with the least and the most; the ratio is that of the
medians. The last line is the same as JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = 512
DEPTH = 2048
STEPS = 32
FIGURES = {
    "open": "s",
    "prefill": "token/s",
    "decode": "token/s",
    "decode_deep": "token/s",
    "peak_rss": "MiB",
}


def tokens(vocab_size, start, count):
    """Token ids that are the same in both libraries, spread over the vocabulary."""
    return [i * 7919 % vocab_size for i in range(start, start + count)]


class Mistral:
    def __init__(self, path, threads):
        sys.path.insert(0, str(ROOT / "mistral-ffi" / "python"))
        import mistral

        self.model = mistral.Model(path, threads=threads)
        self.vocab_size = self.model.info["weights"]["vocab_size"]
        self.session = self.model.session(context=DEPTH + PROMPT)
        self.version = f"mistral {mistral.version()}, kernels {self.model.info['kernels']}"

    def clear(self):
        self.session.reset()

    def evaluate(self, ids):
        self.session.prefill(ids)


class LlamaCpp:
    def __init__(self, path, threads):
        import ctypes

        import llama_cpp

        self.lib = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = DEPTH + PROMPT
        params.n_threads = params.n_threads_batch = threads
        params.n_batch = params.n_ubatch = PROMPT
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        flags = llama_cpp.llama_print_system_info().decode().strip()
        self.version = f"llama-cpp-python {llama_cpp.__version__}: {flags}"

    def clear(self):
        self.lib.llama_memory_clear(self.memory, True)

    def evaluate(self, ids):
        for start in range(0, len(ids), PROMPT):
            part = ids[start : start + PROMPT]
            array = (self.lib.llama_token * len(part))(*part)
            status = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(part)))
            assert status == 0, f"llama_decode: {status}"
        self.lib.llama_synchronize(self.context)


def measure(engine, path, threads):
    start = time.perf_counter()
    engine = engine(path, threads)
    engine.evaluate([1])
    figures = {"open": time.perf_counter() - start}

    def timed(ids_before, batches):
        engine.clear()
        if ids_before:
            engine.evaluate(ids_before)
        begin = time.perf_counter()
        for batch in batches:
            engine.evaluate(batch)
        return sum(map(len, batches)) / (time.perf_counter() - begin)

    steps = [[t] for t in tokens(engine.vocab_size, DEPTH, STEPS)]
    figures["prefill"] = timed([], [tokens(engine.vocab_size, 0, PROMPT)])
    figures["decode"] = timed(tokens(engine.vocab_size, 0, 1), steps)
    figures["decode_deep"] = timed(tokens(engine.vocab_size, 0, DEPTH), steps)
    figures["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"version": engine.version, **figures}


def round_of(name, path, threads):
    command = [sys.executable, __file__, path, "--worker", name, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed on {path}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def requantized(path, formats):
    """Copies of the model in other formats, made by llama.cpp where they are not there yet."""
    import ctypes

    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    files = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
    for name in formats:
        copy = Path(path).with_suffix(f".{name}.gguf")
        if not copy.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype, params.allow_requantize = files[name], True
            status = llama_cpp.llama_model_quantize(path.encode(), str(copy).encode(), params)
            assert status == 0, f"llama_model_quantize: {status}"
        yield str(copy)


def compare(path, threads, repeat):
    rounds = {"mistral": [], "llama.cpp": []}
    for _ in range(repeat):
        for name in rounds:
            rounds[name].append(round_of(name, path, threads))
    print(f"\n{path}, {threads} threads, {repeat} rounds")
    for name, results in rounds.items():
        print(f"  {name}: {results[0]['version']}")
    print(f"  {'':<12}{'mistral':>10} {'(least, most)':>18}{'llama.cpp':>12} {'(least, most)':>18}{'ratio':>8}")
    summary = {}
    for figure, unit in FIGURES.items():
        row = [[result[figure] for result in rounds[name]] for name in rounds]
        ours, theirs = map(statistics.median, row)
        summary[figure] = {"mistral": ours, "llama.cpp": theirs, "ratio": ours / theirs}
        spread = [f"({min(v):.3g}, {max(v):.3g})" for v in row]
        print(f"  {figure:<12}{ours:>10.4g} {spread[0]:>18}{theirs:>12.4g} {spread[1]:>18}{ours / theirs:>8.2f} {unit}")
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=[])
    parser.add_argument("--worker", choices=["mistral", "llama.cpp"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine = {"mistral": Mistral, "llama.cpp": LlamaCpp}[arguments.worker]
        print(json.dumps(measure(engine, arguments.models[0], arguments.threads)))
        return
    paths = [path for model in arguments.models for path in [model, *requantized(model, arguments.formats)]]
    results = {path: compare(path, arguments.threads, arguments.repeat) for path in paths}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
