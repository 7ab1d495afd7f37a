#!/usr/bin/env python3
"""The same file in mistral and in llama.cpp, one after the other, on the same threads; prints ratios.

    pip install llama-cpp-python        # builds llama.cpp for this processor
    cargo build --release -p mistral-ffi
    python3 benches/compare_llama_cpp.py MODEL.gguf [MODEL.gguf ...] [--threads 2] [--repeat 5] [--formats Q4_0,Q8_0]
        [--llama-bench PATH] [--shapes 1b,7b] [--depth 2048] [--text]

`--formats` makes copies of each model in those formats, beside it, with llama.cpp's own quantiser, and `--shapes` models of random
weights (`cargo run --release --example random_model`) in those formats. `--llama-bench` measures a program of that name too, of llama.cpp or of a
fork like ik_llama.cpp, in the same rounds. `--depth` is that of the decoding after a long prompt, 0 for none. `--text` compares the greedy continuations of a text, token by token.

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
    def __init__(self, path, threads, depth=2048):
        sys.path.insert(0, str(ROOT / "mistral-ffi" / "python"))
        import mistral

        self.model = mistral.Model(path, threads=threads)
        self.vocab_size = self.model.info["weights"]["vocab_size"]
        self.session = self.model.session(context=depth + PROMPT + STEPS)
        self.version = f"mistral {mistral.version()}, kernels {self.model.info['kernels']}"

    def settle(self):
        """Waits for the large pages that the weights are moved to, up to half a minute."""
        for _ in range(3000):
            pages = self.model.info["weights"]["large_pages"]
            if pages["bytes"] >= pages["of"]:
                break
            time.sleep(0.01)

    def clear(self):
        self.session.reset()

    def evaluate(self, ids):
        self.session.prefill(ids)


class LlamaCpp:
    def __init__(self, path, threads, depth=2048):
        import ctypes

        import llama_cpp

        self.lib = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = depth + PROMPT + STEPS
        params.n_threads = params.n_threads_batch = threads
        params.n_batch = params.n_ubatch = PROMPT
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        flags = llama_cpp.llama_print_system_info().decode().strip()
        self.version = f"llama-cpp-python {llama_cpp.__version__}: {flags}"

    def settle(self):
        """What it loads is as it stays."""

    def clear(self):
        self.lib.llama_memory_clear(self.memory, True)

    def evaluate(self, ids):
        for start in range(0, len(ids), PROMPT):
            part = ids[start : start + PROMPT]
            array = (self.lib.llama_token * len(part))(*part)
            status = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(part)))
            assert status == 0, f"llama_decode: {status}"
        self.lib.llama_synchronize(self.context)


def measure(engine, path, threads, depth):
    start = time.perf_counter()
    engine = engine(path, threads, depth)
    engine.evaluate([1])
    figures = {"open": time.perf_counter() - start}
    engine.settle()

    def timed(ids_before, batches):
        engine.clear()
        if ids_before:
            engine.evaluate(ids_before)
        begin = time.perf_counter()
        for batch in batches:
            engine.evaluate(batch)
        return sum(map(len, batches)) / (time.perf_counter() - begin)

    steps = [[t] for t in tokens(engine.vocab_size, depth, STEPS)]
    figures["prefill"] = timed([], [tokens(engine.vocab_size, 0, PROMPT)])
    figures["decode"] = timed(tokens(engine.vocab_size, 0, 1), steps)
    if depth:
        figures["decode_deep"] = timed(tokens(engine.vocab_size, 0, depth), steps)
    figures["peak_rss"] = peak_rss()
    return {"version": engine.version, **figures}


def peak_rss():
    """MiB that this process has had in memory at most, and, where the system says nothing better, that its parent had when it started this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def llama_bench(program, path, threads, depth):
    """One round of a `llama-bench` program: the same figures, as far as it has them."""
    common = [program, "-m", path, "-t", str(threads), "-r", "1", "-o", "json"]
    figures = {}
    runs = {"prefill": ["-p", str(PROMPT), "-n", "0"], "decode": ["-p", "0", "-n", str(STEPS)]}
    if depth:
        # llama.cpp's word for it, and ik_llama.cpp's; both time the generation alone.
        deep = ["-p", "0", "-n", str(STEPS), "-d", str(depth)]
        known = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
        runs["decode_deep"] = deep if "--n-depth" in known else ["-p", "0", "-n", "0", "-gp", f"{depth},{STEPS}"]
    for figure, arguments in runs.items():
        done = subprocess.run([*common, *arguments], capture_output=True, text=True)
        if done.returncode:
            continue
        result = json.loads(done.stdout)[-1]
        count = PROMPT if figure == "prefill" else STEPS
        figures[figure] = count * 1e9 / result["avg_ns"]
        figures["version"] = f"{program} {result['build_commit']}, {result['cpu_info']}"
    figures["peak_rss"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return figures


def greedy_text(path, threads, count=64):
    """How many tokens of a greedy continuation are the same in both libraries, of `count`; and where they part, how far apart the two tokens are in the
    logits of exact arithmetic (f32 activations): rounding decides what is nearer than some tenths."""
    import ctypes

    import llama_cpp

    ours, theirs = Mistral(path, threads), LlamaCpp(path, threads)
    prompt = ours.model.encode("Once upon a time, in a small village by the sea,")
    expected = [event.token for event in ours.session.generate(prompt, max_tokens=count, ignore_eos=True)]
    theirs.evaluate(list(prompt))
    found = []
    for _ in range(count):
        logits = llama_cpp.llama_get_logits_ith(theirs.context, -1)
        row = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * theirs.vocab_size)).contents
        found.append(max(range(theirs.vocab_size), key=row.__getitem__))
        theirs.evaluate(found[-1:])
    same = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), count)
    if same == count:
        return same, count, None
    exact = type(ours.model)(path, threads=threads, activation="f32").session(context=2048)
    exact.prefill([*prompt, *found[:same]])
    logits = exact.logits()
    return same, count, abs(logits[expected[same]] - logits[found[same]])


def random_models(shapes, formats):
    """Models of random weights, written where they are not there yet."""
    for shape in shapes:
        for name in formats:
            path = ROOT / "models" / f"random-{shape}-{name}.gguf"
            if not path.exists():
                command = ["cargo", "run", "--release", "--example", "random_model", "--", shape, name, str(path)]
                subprocess.run(command, cwd=ROOT, check=True)
            yield str(path)


def round_of(name, path, threads, depth):
    if name not in ("mistral", "llama.cpp"):
        return llama_bench(name, path, threads, depth)
    command = [sys.executable, __file__, path, "--worker", name, "--threads", str(threads), "--depth", str(depth)]
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


def compare(path, threads, repeat, depth, bench=None):
    rounds = {"mistral": [], "llama.cpp": [], **({bench: []} if bench else {})}
    for _ in range(repeat):
        for name in rounds:
            rounds[name].append(round_of(name, path, threads, depth))
    print(f"\n{path}, {threads} threads, {repeat} rounds")
    for name, results in rounds.items():
        print(f"  {name}: {results[0]['version']}")
    summary = {}
    for figure, unit in FIGURES.items():
        row = {name: [r[figure] for r in results if figure in r] for name, results in rounds.items()}
        medians = {name: statistics.median(values) for name, values in row.items() if values}
        summary[figure] = medians
        if not medians:
            continue
        cells = [
            f"{Path(name).name} {median:.4g} ({min(row[name]):.3g}, {max(row[name]):.3g}) {medians['mistral'] / median:.2f}x"
            for name, median in medians.items()
        ]
        print(f"  {figure:<12} {unit:<8} " + "   ".join(cells))
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=[])
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=[])
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--depth", type=int, default=2048)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--worker", choices=["mistral", "llama.cpp"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine = {"mistral": Mistral, "llama.cpp": LlamaCpp}[arguments.worker]
        print(json.dumps(measure(engine, arguments.models[0], arguments.threads, arguments.depth)))
        return
    paths = [path for model in arguments.models for path in [model, *requantized(model, arguments.formats)]]
    paths += random_models(arguments.shapes, arguments.formats)
    results = {}
    for path in paths:
        results[path] = compare(path, arguments.threads, arguments.repeat, arguments.depth, arguments.llama_bench)
    # Last: the peak memory of `llama-bench` counts that of the process that starts it.
    for path in paths if arguments.text else []:
        same, count, apart = greedy_text(path, arguments.threads)
        parting = "" if apart is None else f"; the next two are {apart:.2f} apart in the logits of exact arithmetic"
        print(f"{path}: the first {same} of {count} greedy tokens are the same{parting}")
        results[path]["same_greedy_tokens"] = same
    print(json.dumps(results))


if __name__ == "__main__":
    main()
