"""Loading the library, opening models, their limits, and errors."""

import os
import pickle
import sys
import threading
import unittest
import unittest.mock

import mistral
from mistral import _library
import support
from support import VOCAB_SIZE, WithModel


class Library(unittest.TestCase):
    def test_version_and_devices(self):
        self.assertRegex(mistral.version(), r"^\d+\.\d+\.\d+")
        self.assertEqual(mistral.build_info()["version"], mistral.version())
        self.assertIn("cpu", [device["name"] for device in mistral.devices()])

    def test_the_library_is_loaded_once(self):
        self.assertEqual(str(mistral.load_library()), os.path.realpath(support.LIBRARY))
        with self.assertRaises(RuntimeError):
            mistral.load_library("/somewhere/else.so")


class Logging(unittest.TestCase):
    def test_messages_reach_the_function_that_is_set(self):
        library, told, raised = _library.library(), [], []
        self.addCleanup(mistral.set_log, None)

        def fails(level, message):
            raise OSError(message)

        with unittest.mock.patch.object(library, "mistral_set_log", wraps=library.mistral_set_log) as set_log:

            def tell(message):
                """As the library does it: it says nothing while nothing fails."""
                function, data = set_log.call_args.args[0], message.encode()
                if function:
                    function(None, 1, data, len(data))

            mistral.set_log(lambda *arguments: told.append(arguments))
            tell("one\0 ü")
            with unittest.mock.patch.object(sys, "unraisablehook", lambda it: raised.append(it.exc_value)):
                mistral.set_log(fails)
                tell("two")
            mistral.set_log(None)
            tell("three")
            with self.assertRaisesRegex(mistral.ArgumentError, "`callback`: found int"):
                mistral.set_log(1)
        self.assertEqual(told, [(1, "one\0 ü")])
        self.assertEqual([str(error) for error in raised], ["two"])


class Opening(unittest.TestCase):
    def test_errors_are_typed_and_name_what_is_wrong(self):
        with self.assertRaises(mistral.FileError) as caught:
            mistral.Model("/nowhere/at/all")
        self.assertIsInstance(caught.exception, OSError)
        self.assertEqual(caught.exception.errno, 2)
        self.assertIn("/nowhere/at/all", str(caught.exception))
        for options, error, name in [
            ({"devise": "cpu"}, mistral.ArgumentError, "devise"),
            ({"threads": 0}, mistral.ArgumentError, "threads"),
            ({"threads": "2"}, mistral.ArgumentError, "threads"),
            ({"threads": float("nan")}, mistral.ArgumentError, "options"),
            ({"quantize": "q3"}, mistral.ArgumentError, "quantize"),
            ({"device": "tpu"}, mistral.UnsupportedError, "tpu"),
            ({"max_memory": 10}, mistral.LimitError, "max_memory"),
        ]:
            with self.subTest(options), self.assertRaises(error) as caught:
                mistral.Model(support.MODEL, **options)
            self.assertIn(name, str(caught.exception))
        with self.assertRaises(mistral.Utf8Error):
            mistral.Model(b"/nowhere\xff")
        self.assertTrue(issubclass(mistral.ArgumentError, ValueError))

    def test_progress_is_reported_and_can_stop(self):
        seen = []
        mistral.Model(support.MODEL, progress=seen.append).close()
        self.assertEqual({progress.phase for progress in seen}, {"load"})
        self.assertEqual([p.done for p in seen], sorted(p.done for p in seen))
        self.assertTrue(all(0 < p.total and p.done <= p.total for p in seen))

        class Stop(Exception):
            pass

        def stop(progress):
            raise Stop

        with self.assertRaises(Stop):
            mistral.Model(support.MODEL, progress=stop)

    def test_cancel(self):
        with mistral.Cancel() as cancel:
            cancel.cancel()
            with self.assertRaises(mistral.CancelledError):
                mistral.Model(support.MODEL, cancel=cancel)
            cancel.reset()
            mistral.Model(support.MODEL, cancel=cancel).close()

    def test_closing_twice_and_using_what_is_closed(self):
        with mistral.Model(support.MODEL) as model:
            session = model.session(context=16)
        model.close()
        session.prefill([1, 2])  # The session keeps the model alive.
        session.close()
        session.close()
        for call in (lambda: model.encode("x"), lambda: model.info, lambda: session.logits()):
            with self.assertRaises(mistral.HandleError):
                call()


class Limits(unittest.TestCase):
    def test_estimate(self):
        found = mistral.estimate(support.MODEL, context=64, sessions=3)
        self.assertEqual(found["weights_bytes"], os.path.getsize(support.MODEL))
        self.assertEqual(found["total_bytes"], found["weights_bytes"] + 3 * found["cache_bytes"])
        self.assertEqual((found["format"], found["vocab_size"], found["max_context"]), ("gguf", VOCAB_SIZE, 512))
        with self.assertRaises(mistral.LimitError):
            mistral.estimate(support.MODEL, max_memory=10)
        with self.assertRaises(mistral.FileError):
            mistral.estimate("/nowhere/at/all")
        with self.assertRaises(mistral.ArgumentError):
            mistral.estimate(support.MODEL, kontext=1)

    def test_each_limit(self):
        with self.assertRaisesRegex(mistral.LimitError, "max_model_bytes"):
            mistral.Model(support.MODEL, max_model_bytes=10)
        with mistral.Model(support.MODEL, max_sessions=1, max_output_tokens=4) as model, model.session(context=64) as session:
            with self.assertRaisesRegex(mistral.LimitError, "max_sessions"):
                model.session(context=64)
            with self.assertRaisesRegex(mistral.LimitError, "max_sessions"):
                session.fork()
            with self.assertRaisesRegex(mistral.LimitError, "max_output_tokens"):
                session.generate([1], max_tokens=5)
            self.assertEqual(len(list(session.generate([1], ignore_eos=True))), 4)
        with mistral.Model(support.MODEL) as model, model.session(context=64, max_prompt_tokens=3) as session:
            with self.assertRaisesRegex(mistral.LimitError, "max_prompt_tokens"):
                session.prefill([1] * 4)
            with model.session(context=64, max_time_ms=0) as hurried:
                with self.assertRaisesRegex(mistral.LimitError, "max_time_ms"):
                    list(hurried.generate([1] * 60))


class Errors(WithModel):
    def test_each_status_has_its_exception(self):
        kinds = [getattr(mistral, name) for name in mistral.__all__ if name.endswith("Error") and name != "Error"]
        # OK, NULL (which this package never passes) and BUFFER_TOO_SMALL (which it answers) have none.
        self.assertEqual(sorted(kind.status for kind in kinds), [n for n in range(2, 21) if n != 15])
        self.assertTrue(all(issubclass(kind, mistral.Error) for kind in kinds))

    def test_they_travel_between_processes(self):
        for call in (
            lambda: mistral.Model("/nowhere"),
            lambda: self.model.session(context=-1),
            lambda: self.model.session(context=2).prefill([1, 2, 3]),
        ):
            with self.assertRaises(mistral.Error) as caught:
                call()
            error, copy = caught.exception, pickle.loads(pickle.dumps(caught.exception))
            self.assertEqual((type(copy), str(copy), copy.status), (type(error), str(error), error.status))
            self.assertEqual(copy.details, error.details)
        for thing in (self.model, self.session(), mistral.Cancel()):
            with self.assertRaisesRegex(TypeError, "belongs to the process"):
                pickle.dumps(thing)

    def test_what_a_callback_raises_comes_out_and_nothing_breaks(self):
        class Stop(BaseException):
            pass

        def stop(progress):
            raise Stop

        session = self.session()
        for call in (session.prefill, session.generate):
            with self.assertRaises(Stop):
                call([1] * 10, progress=stop)
        session.reset()
        session.prefill([1])
        self.assertEqual(session.stats["tokens"], 1)

    def test_two_threads_collide_on_a_session(self):
        session, refused = self.session(), []

        def meanwhile(progress):
            thread = threading.Thread(target=collide)
            thread.start()
            thread.join()

        def collide():
            for call in (session.reset, session.logits, lambda: session.prefill([1]), lambda: session.generate([1])):
                try:
                    call()
                except mistral.BusyError as error:
                    refused.append(error)

        session.prefill([1, 2, 3], progress=meanwhile)
        self.assertEqual(len(refused), 4)
        self.assertEqual(session.stats["tokens"], 3)
