"""Runs the tests of the Python package: run.py LIBRARY MODEL, a model with the tokenizer of tests/ffi/support.

Prints nothing unless they fail: what comes out otherwise is the library's, which is to be silent.
"""

import io
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "mistral-ffi" / "python"), str(HERE)]

import test_mistral  # noqa: E402

if __name__ == "__main__":
    test_mistral.LIBRARY, test_mistral.MODEL = sys.argv[1:3]
    report = io.StringIO()
    runner = unittest.TextTestRunner(stream=report)
    if not unittest.main(module=test_mistral, argv=sys.argv[:1], testRunner=runner, exit=False).result.wasSuccessful():
        sys.exit(report.getvalue())
