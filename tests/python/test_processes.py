"""Models in processes of their own, and objects in the child of a fork."""

import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import unittest

import mistral
import support
from support import HELLO, WithModel, during_next


class Spawning(WithModel):
    def test_a_pool_of_processes_with_models_of_their_own(self):
        expected = answer_of(self.model)
        with multiprocessing.get_context("spawn").Pool(2, open_in_worker, (support.LIBRARY, support.MODEL)) as pool:
            self.assertEqual(pool.map(answer_in_worker, range(4)), [expected] * 4)
            with self.assertRaises(mistral.ContextFullError):
                pool.apply(answer_in_worker, (0, 2))


def answer_of(model, context=64):
    with model.session(context=context) as session:
        return [event.token for event in session.generate([7, 8, 9], max_tokens=8, ignore_eos=True)]


def open_in_worker(library, model):
    global WORKER
    mistral.load_library(library)
    WORKER = mistral.Model(model, threads=1)


def answer_in_worker(_number, context=64):
    return answer_of(WORKER, context)


@unittest.skipUnless(hasattr(os, "fork"), "there is no fork")
class Forking(WithModel):
    def test_the_child_is_refused_and_can_open_its_own(self):
        session = self.session()
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def child():
            try:
                session.prefill([1])
                answers.put("used the parent's session")
            except mistral.ForkedError:
                with mistral.Model(support.MODEL, threads=2) as own:
                    answers.put(own.decode(own.encode("own")))

        process = context.Process(target=child)
        process.start()
        process.join(60)
        self.assertEqual((process.exitcode, answers.get()), (0, "own"))
        session.prefill([1])
        self.assertFalse(math.isnan(session.logits()[0]))

    def test_a_stream_and_a_generation_in_use_are_the_parents(self):
        context = multiprocessing.get_context("fork")

        def refused(iterator):
            answers = context.SimpleQueue()

            def child():
                try:
                    answers.put(type(next(iterator)).__name__)
                except mistral.Error as error:
                    answers.put(type(error).__name__)

            process = context.Process(target=child)
            process.start()
            process.join(60)
            self.assertEqual((process.exitcode, answers.get()), (0, "ForkedError"))

        with self.model.chat({**HELLO, "max_tokens": 200}, stream=True) as stream:
            next(stream)
            refused(stream)
            next(stream)
        with self.session().generate([1]) as generation:
            during_next(generation, lambda: refused(generation))

    def test_the_log_is_the_parents_until_it_lets_go(self):
        context = multiprocessing.get_context("fork")
        answers, close = context.SimpleQueue(), context.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            audit = {"path": os.path.join(folder, "log"), "required": True}

            def child():
                try:
                    with mistral.Model(support.MODEL) as own:
                        own.session(context=16, audit=audit).close()
                    answers.put("opened")
                except mistral.Error as error:
                    answers.put(str(error))
                close.get()

            session = self.session(audit=audit)
            session.prefill([1])
            process = context.Process(target=child)
            process.start()
            try:
                self.assertIn("another process writes it", answers.get())
                session.prefill([2])
                session.close()
                # The child has the file of the lock, still.
                self.session(audit=audit).prefill([3])
            finally:
                close.put(None)
            process.join(60)
            self.assertEqual((process.exitcode, mistral.audit_verify(audit["path"])["records"]), (0, 6))

    def test_the_child_may_end_with_all_objects_of_its_parent(self):
        program = (
            f"import os, sys; sys.path.insert(0, {sys.path[0]!r}); import mistral\n"
            f"mistral.load_library({support.LIBRARY!r})\n"
            f"model = mistral.Model({support.MODEL!r})\n"
            "stream = model.chat({'messages': [{'role': 'user', 'content': 'x'}], 'max_tokens': 200}, stream=True)\n"
            "next(stream)\n"
            "session = model.session(context=64)\n"
            "generation = session.generate([1])\n"
            "cancel = mistral.Cancel()\n"
            "child = os.fork()\n"
            "if child:\n"
            "    print(os.waitpid(child, 0)[1], next(generation).finish_reason, 'object' in next(stream))\n"
        )
        run = subprocess.run([sys.executable, "-B", "-I", "-c", program], capture_output=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, b"0 None True\n", b""))
