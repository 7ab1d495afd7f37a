"""What Python adds to a streamed token: `next(generation)` against mistral_generation_next called from C, on the same model.

    cargo test --release -p mistral-ffi --test reliability -- --ignored write_the_tiny_model
    python3 benches/ctypes_overhead.py target/release/libmistral.so target/tmp/tiny.gguf

The model is tiny, so that the difference is not lost in the time of a step; both run one thread, in turns, and what is compared are the
medians over the tokens of a round. A C compiler is needed.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "mistral-ffi" / "python"))

import mistral  # noqa: E402

TOKENS = 400
ROUNDS = 15


def compile_loop(folder, library):
    program = pathlib.Path(folder) / "next_loop"
    source = REPOSITORY / "benches" / "next_loop.c"
    subprocess.run(
        ["cc", "-O2", f"-I{REPOSITORY / 'include'}", source, library, f"-Wl,-rpath,{library.parent}", "-o", program],
        check=True,
    )
    return program


def in_c(program, model):
    output = subprocess.run([program, model, str(TOKENS)], check=True, capture_output=True, text=True).stdout
    return statistics.median(int(line) for line in output.split())


def in_python(model, **options):
    times, clock = [], time.perf_counter_ns
    with model.session() as session, session.generate([104, 105], ignore_eos=True, **options) as generation:
        for _ in range(TOKENS):
            start = clock()
            next(generation)
            times.append(clock() - start)
    return statistics.median(times)


def main():
    library, path = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    mistral.load_library(library)
    with tempfile.TemporaryDirectory() as folder, mistral.Model(path, threads=1) as model:
        program = compile_loop(folder, library)
        in_python(model)
        rounds = [(in_c(program, path), in_python(model)) for _ in range(ROUNDS)]
    c, python = (sorted(times) for times in zip(*rounds))
    added = sorted(python - c for c, python in rounds)
    for name, values in (("C", c), ("Python", python), ("added by Python", added)):
        middle, low, high = statistics.median(values) / 1000, values[0] / 1000, values[-1] / 1000
        print(f"{name:16} {middle:6.1f} us for a token (median of {ROUNDS} rounds; {low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
