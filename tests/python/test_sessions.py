"""Sessions step by step, their forks and copies, and embeddings."""

import array
import os
import sys
import threading

import mistral
import support
from support import VOCAB_SIZE, WithModel


class Sessions(WithModel):
    def test_logits_are_floats_and_the_same_in_one_piece_or_two(self):
        session = self.session()
        with self.assertRaises(mistral.ArgumentError):
            session.logits()
        session.prefill([1, 2, 3, 4])
        whole = session.logits()
        self.assertEqual((len(whole), whole.format, whole.itemsize), (VOCAB_SIZE, "f", 4))
        kept = list(whole)
        session.reset()
        session.prefill([1, 2])
        session.prefill(memoryview(bytearray(b"\3\0\0\0\4\0\0\0")).cast("I"))
        for tokens in (array.array("I", [1, 2]), memoryview(array.array("I", [1, 2])).toreadonly(), (1, 2), range(1, 3)):
            session.reset()
            session.prefill(tokens)
            session.prefill([3, 4])
        for one, other in zip(kept, session.logits()):
            self.assertAlmostEqual(one, other, delta=1e-5)
        self.assertEqual(list(whole), kept)  # The memory is the caller's own.
        stats = session.stats
        self.assertEqual((stats["tokens"], stats["evaluated"], stats["context"]), (4, 4, 256))

    def test_bad_tokens_and_options(self):
        session = self.session(context=8)
        for ids, error in [
            ([], mistral.ArgumentError),
            ([VOCAB_SIZE], mistral.ArgumentError),
            ([1] * 9, mistral.ContextFullError),
        ]:
            with self.subTest(ids), self.assertRaises(error):
                session.prefill(ids)
        for options, error in [
            ({"context": 0}, mistral.ArgumentError),
            ({"context": -1}, mistral.ArgumentError),
            ({"context": 2_000_000_000}, mistral.LimitError),
            ({"cache_type": "q8"}, mistral.ArgumentError),
            ({"kontext": 1}, mistral.ArgumentError),
        ]:
            with self.subTest(options), self.assertRaises(error):
                self.model.session(**options)

    def test_progress_and_cancel(self):
        session = self.session()
        seen = []
        session.prefill([1] * 100, progress=seen.append)
        self.assertEqual((seen[-1].phase, seen[-1].done, seen[-1].total), ("prefill", 100, 100))
        cancel = mistral.Cancel()
        cancel.cancel()
        with self.assertRaises(mistral.CancelledError):
            session.prefill([1] * 100, cancel=cancel)
        self.assertEqual(session.stats["tokens"], 100)

    def test_a_call_from_a_callback_is_refused(self):
        session = self.session()

        def reenter(progress):
            session.reset()

        with self.assertRaises(mistral.BusyError):
            session.prefill([1] * 10, progress=reenter)


class Branching(WithModel):
    """Sessions that are forked, cut, saved and loaded."""

    def logits_of(self, ids):
        session = self.session()
        session.prefill(ids)
        return list(session.logits())

    def test_a_fork_goes_on_by_itself(self):
        session = self.session()
        session.prefill([1, 2, 3])
        with session.fork() as fork:
            self.assertIs(fork.model, self.model)
            session.prefill([4])
            fork.prefill([5])
            self.assertEqual(list(fork.logits()), self.logits_of([1, 2, 3, 5]))
        self.assertEqual(list(session.logits()), self.logits_of([1, 2, 3, 4]))

    def test_trim(self):
        session = self.session()
        session.prefill([1, 2, 3, 4])
        session.trim(2)
        self.assertEqual((session.stats["tokens"], session.stats["evaluated"]), (2, 1))
        self.assertEqual(list(session.logits()), self.logits_of([1, 2]))
        for count in (3, -1, (1 << 64) + 1, -1 << 64, 0.5):
            with self.subTest(count), self.assertRaisesRegex(mistral.ArgumentError, "`count`: found"):
                session.trim(count)
        session.trim(0)
        with self.assertRaises(mistral.ArgumentError):
            session.logits()

    def test_save_and_load(self):
        session = self.session()
        session.prefill([1, 2, 3])
        for key in (None, b"sixteen bytes or", "00112233445566778899aabbccddeeff", "AAECAwQFBgcICQoLDA0ODw=="):
            blob = session.save(key)
            self.assertIsInstance(blob, bytes)
            with self.model.load_session(bytearray(blob), key) as loaded:
                self.assertEqual(list(loaded.logits()), list(session.logits()))
                self.assertEqual(loaded.stats["context"], 256)
            with self.model.load_session(blob, key, context=16) as loaded:
                self.assertEqual(loaded.stats["context"], 16)
            with self.assertRaises(mistral.IntegrityError):
                self.model.load_session(blob[:-1] + bytes([blob[-1] ^ 1]), key)
            with self.assertRaises(mistral.IntegrityError):
                self.model.load_session(blob, b"another sixteen!")
        with self.assertRaises(mistral.FormatError):
            self.model.load_session(b"")
        for key in (b"short", "not a key at all!"):
            with self.assertRaises(mistral.ArgumentError):
                session.save(key)
        self.assertEqual(len(self.model.info["weights"]["files"][0]["sha256"]), 64)

    def test_the_digest_is_computed_once_with_progress(self):
        with mistral.Model(support.MODEL) as model, model.session(context=16) as session:
            seen = []
            blob = session.save(progress=seen.append)
            self.assertEqual((seen[-1].phase, seen[-1].done), ("digest", os.path.getsize(support.MODEL)))
            count = len(seen)
            model.load_session(blob, progress=seen.append).close()
            self.assertEqual(len(seen), count)

    def test_sampling_is_generating(self):
        options = {"temperature": 1.0, "seed": 5}
        expected = self.session().generate([1, 2], max_tokens=12, ignore_eos=True, logprobs=0, **options)
        session = self.session()
        session.prefill([1, 2])
        for event in expected:
            sampled = session.sample(**options)
            self.assertEqual((sampled.token, sampled.logprob), (event.token, event.logprob))
        self.assertEqual(session.stats["tokens"], 14)
        with self.assertRaises(mistral.ArgumentError):
            session.sample(max_tokens=1)
        with self.assertRaises(mistral.ArgumentError):
            self.session().sample()

    def test_stats(self):
        session = self.session()
        list(session.generate([1, 2, 3], max_tokens=4, ignore_eos=True))
        stats = session.stats
        self.assertEqual((stats["prompt_tokens"], stats["decode_tokens"]), (3, 3))
        self.assertEqual(stats["cache_type"], "f16")
        for name in ("prompt_seconds", "prompt_tokens_per_second", "decode_seconds", "decode_tokens_per_second", "cache_bytes"):
            self.assertGreater(stats[name], 0)


class Embedding(WithModel):
    def test_vectors(self):
        vector = self.model.embed("hello")
        self.assertEqual((len(vector), vector.format), (32, "f"))
        self.assertAlmostEqual(sum(x * x for x in vector), 1, places=5)
        self.assertEqual(list(vector), list(self.model.embed([258] + self.model.encode("hello"))))
        self.assertNotEqual(list(vector), list(self.model.embed("hello", pooling="last")))
        raw = self.model.embed([7], normalize=False)
        self.assertEqual(list(raw), list(self.model.embed([7], normalize=False, pooling="last")))

    def test_threads_that_embed_first_on_a_model(self):
        failed = []

        def embed(model, barrier):
            barrier.wait()
            try:
                self.assertEqual(len(model.embed([7])), 32)
            except BaseException as error:
                failed.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.addCleanup(sys.setswitchinterval, interval)
        for _ in range(40):
            with mistral.Model(support.MODEL, threads=1) as model:
                barrier = threading.Barrier(4)
                threads = [threading.Thread(target=embed, args=(model, barrier)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        self.assertEqual(failed, [])

    def test_errors(self):
        for written, options, error in [
            ([], {}, mistral.ArgumentError),
            ([VOCAB_SIZE], {}, mistral.ArgumentError),
            ([1] * 513, {}, mistral.LimitError),
            ("x", {"pooling": "max"}, mistral.ArgumentError),
        ]:
            with self.assertRaises(error):
                self.model.embed(written, **options)
