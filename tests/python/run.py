"""Runs the tests of the Python package: run.py LIBRARY MODEL, a model with the tokenizer of tests/ffi/support.

Prints nothing unless they fail: what comes out otherwise is the library's, which is to be silent.
"""

import io
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "mistral-ffi" / "python"), str(HERE)]

import mistral  # noqa: E402
import support  # noqa: E402

if __name__ == "__main__":
    support.LIBRARY, support.MODEL = sys.argv[1:3]
    mistral.load_library(support.LIBRARY)
    report = io.StringIO()
    tests = unittest.defaultTestLoader.discover(str(HERE))
    result = unittest.TextTestRunner(stream=report).run(tests)
    if not result.wasSuccessful() or result.testsRun == 0:
        sys.exit(report.getvalue())
