"""What the tests of the Python package share: a tiny random model whose tokens are bytes, `he` and `ll`."""

import unittest
from pathlib import Path

import mistral

# The arguments of run.py.
LIBRARY = ""
MODEL = ""
VOCAB_SIZE = 260
SIGNED = Path(__file__).resolve().parents[1] / "fixtures" / "signing"
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "chat"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


class WithModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = mistral.Model(MODEL)

    @classmethod
    def tearDownClass(cls):
        cls.model.close()

    def session(self, **options):
        session = self.model.session(**{"context": 256, **options})
        self.addCleanup(session.close)
        return session


def during_next(generation, meanwhile):
    """The next event; ``meanwhile`` runs after the library has given it and before it is copied."""
    ask = generation._next

    def ask_and_wait(handle, event):
        generation._next = ask
        status = ask(handle, event)
        meanwhile()
        return status

    generation._next = ask_and_wait
    return next(generation)
