"""The Python package on a tiny random model whose tokens are bytes, `he` and `ll`."""

import array
import gc
import hashlib
import hmac
import json
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock
from pathlib import Path

import mistral
from mistral import _chat, _library, system_card

LIBRARY = ""
MODEL = ""
VOCAB_SIZE = 260
SIGNED = Path(__file__).resolve().parents[1] / "fixtures" / "signing"


def setUpModule():
    mistral.load_library(LIBRARY)


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


class Library(unittest.TestCase):
    def test_version_and_devices(self):
        self.assertRegex(mistral.version(), r"^\d+\.\d+\.\d+")
        self.assertEqual(mistral.build_info()["version"], mistral.version())
        self.assertIn("cpu", [device["name"] for device in mistral.devices()])

    def test_the_library_is_loaded_once(self):
        self.assertEqual(str(mistral.load_library()), os.path.realpath(LIBRARY))
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


class Auditing(unittest.TestCase):
    KEY = "07" * 32

    def test_what_runs_is_written_and_found_again(self):
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "audit.jsonl")
            audit = {"path": log, "required": True, "key": self.KEY, "caller_ref": "case 7"}
            with mistral.Model(MODEL, audit=audit) as model, model.session(context=64) as session:
                ids = model.encode("the canary")
                text = "".join(event.text for event in session.generate(ids, max_tokens=5))
                checkpoint = model.info["audit"]["checkpoint"]
            report = mistral.audit_verify(log, checkpoints=[checkpoint])
            self.assertEqual((report["records"], report["checkpoint"]), (3, checkpoint))
            with open(log, encoding="utf-8") as file:
                lines = file.read().splitlines()
            self.assertNotIn("canary", "".join(lines))
            end = json.loads(lines[-1])
            self.assertEqual((end["status"], end["caller_ref"], end["output_tokens"]), ("ok", "case 7", 5))
            mac = hmac.new(bytes.fromhex(self.KEY), text.encode(), hashlib.sha256).hexdigest()
            self.assertEqual(end["output_hmac"], mac)
            prompt = hmac.new(bytes.fromhex(self.KEY), array.array("I", ids).tobytes(), hashlib.sha256).hexdigest()
            self.assertEqual(end["prompt_hmac"], prompt)
            with open(log, "w", encoding="utf-8") as file:
                file.write("\n".join(lines[:-1]) + "\n")
            mistral.audit_verify(log)
            with self.assertRaises(mistral.IntegrityError):
                mistral.audit_verify(log, checkpoints=[checkpoint])
            with open(log, "w", encoding="utf-8") as file:
                file.write("\n".join(lines).replace("case 7", "case 8") + "\n")
            with self.assertRaises(mistral.IntegrityError):
                mistral.audit_verify(log)

    def test_a_log_that_cannot_be_opened_stops_the_model(self):
        with self.assertRaises(mistral.AuditError):
            mistral.Model(MODEL, audit={"path": "/nowhere/at/all/audit.jsonl", "required": True})
        with self.assertRaises(mistral.ArgumentError) as caught:
            mistral.Model(MODEL, audit={"path": "log", "key": "a short secret"})
        self.assertNotIn("secret", str(caught.exception))


class Verifying(unittest.TestCase):
    def test_a_manifest_is_a_condition(self):
        with tempfile.TemporaryDirectory() as folder:
            manifest = os.path.join(folder, "SHA256SUMS")
            with open(MODEL, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            with open(manifest, "w") as file:
                print(f"{digest}  {os.path.basename(MODEL)}", file=file)
            seen = []
            report = mistral.verify(MODEL, manifest=manifest, progress=seen.append)
            self.assertEqual(report["files"][0]["sha256"], digest)
            self.assertEqual({progress.phase for progress in seen}, {"verify"})
            with mistral.Model(MODEL, verify={"manifest": manifest}) as model:
                self.assertEqual(model.info["verified"], report)
            with open(manifest, "w") as file:
                print(f"{'0' * 64}  {os.path.basename(MODEL)}", file=file)
            for attempt in (
                lambda: mistral.verify(MODEL, manifest=manifest),
                lambda: mistral.Model(MODEL, verify={"manifest": manifest}),
            ):
                with self.assertRaises(mistral.IntegrityError) as caught:
                    attempt()
                self.assertIn(digest, str(caught.exception))
            with self.assertRaises(mistral.ArgumentError):
                mistral.verify(MODEL)

    def test_signatures(self):
        model, signature = SIGNED / "model", SIGNED / "p256.sig"
        with self.assertRaises(mistral.SignatureError):
            mistral.verify(model, signature=signature, keys=[(SIGNED / "p384.pem").read_text()])
        report = mistral.verify(model, signature=signature, keys=[(SIGNED / "p256.pem").read_text()])
        self.assertEqual(report["signature"]["curve"], "P-256")


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
                mistral.Model(MODEL, **options)
            self.assertIn(name, str(caught.exception))
        with self.assertRaises(mistral.Utf8Error):
            mistral.Model(b"/nowhere\xff")
        self.assertTrue(issubclass(mistral.ArgumentError, ValueError))

    def test_progress_is_reported_and_can_stop(self):
        seen = []
        mistral.Model(MODEL, progress=seen.append).close()
        self.assertEqual({progress.phase for progress in seen}, {"load"})
        self.assertEqual([p.done for p in seen], sorted(p.done for p in seen))
        self.assertTrue(all(0 < p.total and p.done <= p.total for p in seen))

        class Stop(Exception):
            pass

        def stop(progress):
            raise Stop

        with self.assertRaises(Stop):
            mistral.Model(MODEL, progress=stop)

    def test_cancel(self):
        with mistral.Cancel() as cancel:
            cancel.cancel()
            with self.assertRaises(mistral.CancelledError):
                mistral.Model(MODEL, cancel=cancel)
            cancel.reset()
            mistral.Model(MODEL, cancel=cancel).close()

    def test_closing_twice_and_using_what_is_closed(self):
        with mistral.Model(MODEL) as model:
            session = model.session(context=16)
        model.close()
        session.prefill([1, 2])  # The session keeps the model alive.
        session.close()
        session.close()
        for call in (lambda: model.encode("x"), lambda: model.info, lambda: session.logits()):
            with self.assertRaises(mistral.HandleError):
                call()


class Text(WithModel):
    def test_encode_and_decode(self):
        ids = self.model.encode("hello")
        self.assertEqual(len(ids), 3)
        self.assertEqual(self.model.decode(ids), "hello")
        for text in ("", "a\0b", "Grüße 🤖", "</s>"):
            self.assertEqual(self.model.decode(self.model.encode(text)), text)
        self.assertEqual(self.model.encode("</s>", special=True), [259])
        self.assertEqual(self.model.encode("x", bos=True)[0], 258)
        self.assertEqual(self.model.decode([259]), "")
        self.assertEqual(self.model.decode([259], special=True), "</s>")
        self.assertEqual(self.model.decode(iter(ids)), "hello")
        self.assertEqual(len(self.model.encode("x" * 100_000)), 100_000)

    def test_bad_text_and_tokens(self):
        with self.assertRaises(mistral.Utf8Error):
            self.model.encode(b"\xff")
        half = "\ud800"
        for call in (
            lambda: self.model.encode("\udcff"),
            lambda: self.model.encode("a" + half),
            lambda: self.model.embed("\udcff" + half),
            lambda: self.model.fim_encode("a", half),
            lambda: self.model.chat_parse(half),
            lambda: mistral.Model(half),
        ):
            with self.assertRaises(mistral.Utf8Error):
                call()
        for call in (
            lambda: self.model.chat({"messages": [{"role": "user", "content": half}]}),
            lambda: self.model.session(context=64).generate([1], stop=half),
        ):
            with self.assertRaises(mistral.ArgumentError):
                call()
        self.assertFalse(mistral.check_sidecar({"output": {}}, half))
        for ids in ([VOCAB_SIZE], [-1], [1 << 32], [0.5], ["x"]):
            with self.subTest(ids), self.assertRaises(mistral.ArgumentError):
                self.model.decode(ids)

    def test_values_that_are_nested_too_deeply(self):
        deep = {}
        for _ in range(100_000):
            deep = {"items": deep}
        for call, name in (
            (lambda: self.model.session(context=64).generate([1], json_schema=deep), "options"),
            (lambda: self.model.chat({"messages": [deep]}), "request"),
            (lambda: self.model.chat({"messages": [deep]}, stream=True), "request"),
            (lambda: self.model.chat_encode({"messages": [deep]}), "request"),
        ):
            with self.assertRaisesRegex(mistral.ArgumentError, f"`{name}`: found values that are nested too deeply"):
                call()

    def test_info(self):
        self.assertEqual(self.model.info["weights"]["vocab_size"], VOCAB_SIZE)
        self.assertEqual(self.model.info["device"], "cpu")


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "chat"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def digest(tokens):
    """As tests/fixtures/chat/make_corpus.py makes it."""
    value = 0xCBF29CE484222325
    for byte in array.array("I", tokens).tobytes():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{len(tokens)}:{value:016x}"


class Alone(unittest.TestCase):
    """Tokenizers without weights."""

    def open(self, path, **options):
        model = mistral.Model(path, weights=False, **options)
        self.addCleanup(model.close)
        return model

    def test_the_corpus_of_mistral_common(self):
        files = {f"spm-{v}": FIXTURES / f"tokenizer.model.{v}" for v in ("v1", "v2", "v3", "v7")}
        files["tekken-v15-schema"] = FIXTURES / "tekken.json"
        models = {name: self.open(path) for name, path in files.items()}
        with open(FIXTURES / "corpus.jsonl", encoding="utf-8") as lines:
            for line in lines:
                case = json.loads(line)
                request = case["request"]
                for name, model in models.items():
                    expected = case["results"][name]
                    try:
                        if "prompt" in request:
                            found = model.fim_encode(request["prompt"], request.get("suffix") or "")
                        else:
                            found = model.chat_encode(request, mode=case.get("mode", "test"))
                        found = digest(found) if isinstance(expected, str) else found
                    except (mistral.ArgumentError, mistral.UnsupportedError) as error:
                        found = error.details.get("rule", "Error") if expected != "Error" else expected
                    self.assertEqual(found, expected, (name, line[:200]))

    def test_where_tokenizers_lie(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaises(mistral.FormatError):
                self.open(folder)
            shutil.copy(FIXTURES / "tokenizer.model.v3", folder)
            model = self.open(folder)
            self.assertEqual(model.info["tokenizer"]["version"], "v3")
            self.assertEqual(model.chat_render(HELLO), "<s>[INST]▁hello[/INST]")
            shutil.move(f"{folder}/tokenizer.model.v3", f"{folder}/vocabulary")
            named = self.open(f"{folder}/vocabulary", tokenizer_version="v7")
            self.assertEqual(named.info["tokenizer"]["chat_format"], "mistral v7")
            unnamed = self.open(f"{folder}/vocabulary")
            self.assertEqual(unnamed.decode(unnamed.encode("hello")), "hello")
            with self.assertRaises(mistral.UnsupportedError):
                unnamed.chat_encode(HELLO)
            with self.assertRaises(mistral.ArgumentError):
                self.open(folder, tokenizer_version="v8")
        model = self.open(MODEL)
        self.assertEqual(model.decode(model.encode("hello")), "hello")
        self.assertEqual(model.chat_render(HELLO), "<s>user: hello\n")
        self.assertIsNone(model.info["weights"])

    def test_nothing_is_generated(self):
        model = self.open(FIXTURES / "tekken.json")
        for call in (model.session, lambda: model.chat(HELLO), lambda: list(model.chat(HELLO, stream=True))):
            with self.assertRaisesRegex(mistral.UnsupportedError, "without weights"):
                call()

    def test_answers_are_read_back(self):
        model = self.open(FIXTURES / "tekken.json")
        text = '[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]f[ARGS]{"a": "[ARGS]"}[TOOL_CALLS]g[ARGS]{"b'
        message = model.chat_parse(text)
        self.assertEqual((message["role"], message["content"], message["reasoning_content"]), ("assistant", "Yes.", "Hm."))
        call = message["tool_calls"][0]
        self.assertEqual(call["function"], {"name": "f", "arguments": '{"a": "[ARGS]"}'})
        self.assertRegex(call["id"], "^[A-Za-z0-9]{9}$")
        self.assertEqual([(c["name"], c["reason"]) for c in message["broken_tool_calls"]], [("g", "truncated")])
        tokens = [
            t for part in ("[THINK]", "Hm.", "[/THINK]", "Yes.", "[TOOL_CALLS]", "f", "[ARGS]", "{}", "</s>", "x")
            for t in model.encode(part, special=part[0] in "[<")
        ]
        message = model.chat_parse(tokens)
        self.assertEqual((message["content"], message["reasoning_content"]), ("Yes.", "Hm."))
        self.assertEqual(message["tool_calls"][0]["function"], {"name": "f", "arguments": "{}"})
        history = {"messages": HELLO["messages"] + [message, {"role": "tool", "content": "1", "tool_call_id": message["tool_calls"][0]["id"]}]}
        self.assertIn("[TOOL_CALLS]f[ARGS]{}</s>[TOOL_RESULTS]1[/TOOL_RESULTS]", model.chat_render(history))
        self.assertEqual(model.chat_parse("", tokenizer_version="v3")["content"], "")
        for bad in ([1 << 20], [-1]):
            with self.assertRaises(mistral.ArgumentError):
                model.chat_parse(bad)

    def test_bad_requests(self):
        model = self.open(FIXTURES / "tokenizer.model.v3")
        for request, name in [
            ({}, "messages"),
            ({**HELLO, "temprature": 1}, "temprature"),
            ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": object()}]}, "request"),
        ]:
            with self.assertRaises(mistral.ArgumentError) as caught:
                model.chat_encode(request)
            self.assertIn(name, str(caught.exception))
        with self.assertRaisesRegex(mistral.ArgumentError, "mode"):
            model.chat_render(HELLO, mode="training")


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
        with mistral.Model(MODEL) as model, model.session(context=16) as session:
            seen = []
            blob = session.save(progress=seen.append)
            self.assertEqual((seen[-1].phase, seen[-1].done), ("digest", os.path.getsize(MODEL)))
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
            with mistral.Model(MODEL, threads=1) as model:
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


class Limits(unittest.TestCase):
    def test_estimate(self):
        found = mistral.estimate(MODEL, context=64, sessions=3)
        self.assertEqual(found["weights_bytes"], os.path.getsize(MODEL))
        self.assertEqual(found["total_bytes"], found["weights_bytes"] + 3 * found["cache_bytes"])
        self.assertEqual((found["format"], found["vocab_size"], found["max_context"]), ("gguf", VOCAB_SIZE, 512))
        with self.assertRaises(mistral.LimitError):
            mistral.estimate(MODEL, max_memory=10)
        with self.assertRaises(mistral.FileError):
            mistral.estimate("/nowhere/at/all")
        with self.assertRaises(mistral.ArgumentError):
            mistral.estimate(MODEL, kontext=1)

    def test_each_limit(self):
        with self.assertRaisesRegex(mistral.LimitError, "max_model_bytes"):
            mistral.Model(MODEL, max_model_bytes=10)
        with mistral.Model(MODEL, max_sessions=1, max_output_tokens=4) as model, model.session(context=64) as session:
            with self.assertRaisesRegex(mistral.LimitError, "max_sessions"):
                model.session(context=64)
            with self.assertRaisesRegex(mistral.LimitError, "max_sessions"):
                session.fork()
            with self.assertRaisesRegex(mistral.LimitError, "max_output_tokens"):
                session.generate([1], max_tokens=5)
            self.assertEqual(len(list(session.generate([1], ignore_eos=True))), 4)
        with mistral.Model(MODEL) as model, model.session(context=64, max_prompt_tokens=3) as session:
            with self.assertRaisesRegex(mistral.LimitError, "max_prompt_tokens"):
                session.prefill([1] * 4)
            with model.session(context=64, max_time_ms=0) as hurried:
                with self.assertRaisesRegex(mistral.LimitError, "max_time_ms"):
                    list(hurried.generate([1] * 60))


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


class Generating(WithModel):
    def test_events(self):
        session = self.session()
        events = list(session.generate([104, 105], max_tokens=12, ignore_eos=True, logprobs=3))
        self.assertEqual(len(events), 12)
        self.assertEqual([e.finish_reason for e in events], [None] * 11 + ["length"])
        for event in events:
            # Greedy: the token is the most probable one.
            self.assertEqual(event.token, event.top_logprobs[0].token)
            self.assertEqual(event.logprob, event.top_logprobs[0].logprob)
            self.assertEqual(len(event.top_logprobs), 3)
            self.assertLess(event.logprob, 0)
        text = "".join(event.text for event in events)
        self.assertEqual(text, self.model.decode([event.token for event in events]))

    def test_greedy_is_the_largest_logit_step_by_step(self):
        events = list(self.session().generate([104, 105], max_tokens=5, ignore_eos=True))
        self.assertTrue(all(event.logprob is None and event.top_logprobs == () for event in events))
        session, ids = self.session(), [104, 105]
        for event in events:
            session.prefill(ids)
            logits = list(session.logits())
            self.assertEqual(event.token, max(range(VOCAB_SIZE), key=logits.__getitem__))
            ids = [event.token]

    def test_the_seed_decides(self):
        def run(seed):
            options = {"max_tokens": 16, "temperature": 1.0, "seed": seed, "ignore_eos": True}
            return [event.token for event in self.session().generate([1, 2, 3], **options)]

        self.assertEqual(run(7), run(7))
        self.assertNotEqual(run(7), run(8))

    def test_stopping_early_frees_the_session(self):
        session = self.session()
        generation = session.generate([1, 2], ignore_eos=True)
        next(generation)
        for call in (session.reset, session.logits, lambda: session.generate([1])):
            with self.assertRaises(mistral.BusyError):
                call()
        generation.close()
        with self.assertRaises(StopIteration):
            next(generation)
        for event in session.generate([1, 2], ignore_eos=True):
            break
        gc.collect()
        with session.generate([3]) as generation:
            next(generation)
        session.reset()
        self.assertEqual(session.stats["tokens"], 0)

    def test_an_event_outlives_a_close_from_another_thread(self):
        options = {"ignore_eos": True, "logprobs": 3}
        with self.session().generate([104, 105], **options) as generation:
            expected = next(generation)
        session = self.session()

        def close_on_a_thread():
            thread = threading.Thread(target=generation.close)
            thread.start()
            thread.join()

        # The second as a handler of a signal does it.
        for close in (close_on_a_thread, lambda: generation.close()):
            session.reset()
            generation = session.generate([104, 105], **options)
            self.assertEqual(during_next(generation, close), expected)
            with self.assertRaises(StopIteration):
                next(generation)
        session.reset()

    def test_two_threads_ask_one_generation(self):
        options = {"ignore_eos": True, "logprobs": 3}
        with self.session().generate([104, 105], **options) as generation:
            expected = [next(generation), next(generation)]
        with self.session().generate([104, 105], **options) as generation:
            with self.assertRaises(mistral.BusyError):
                during_next(generation, lambda: next(generation))
        generation, refused = self.session().generate([104, 105], **options), []

        def ask():
            try:
                next(generation)
            except mistral.BusyError as error:
                refused.append(error)

        def ask_on_a_thread():
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

        with generation:
            self.assertEqual(during_next(generation, ask_on_a_thread), expected[0])
            self.assertEqual(len(refused), 1)

    def test_it_goes_on_from_where_it_stopped(self):
        session = self.session()
        options = {"max_tokens": 6, "ignore_eos": True}
        tokens = [event.token for event in session.generate([5, 6], **options)]
        tokens += [event.token for event in session.generate(**options)]
        whole = [e.token for e in self.session().generate([5, 6], max_tokens=12, ignore_eos=True)]
        self.assertEqual(tokens, whole)

    def test_a_full_context_is_a_finish_reason(self):
        events = list(self.session(context=10).generate([1, 2, 3], ignore_eos=True))
        self.assertEqual(events[-1].finish_reason, "context_full")

    def test_stop_texts_do_not_leak(self):
        options = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 3}
        whole = "".join(event.text for event in self.session().generate([1], **options))
        stop = whole[10:12]
        events = list(self.session().generate([1], stop=[stop], **options))
        self.assertEqual(events[-1].finish_reason, "stop")
        self.assertEqual("".join(event.text for event in events), whole[: whole.index(stop)])

    def test_wrong_options_are_named(self):
        session = self.session()
        for options in [
            {"temprature": 1},
            {"temperature": -1},
            {"top_p": 2},
            {"max_tokens": 0},
            {"logit_bias": {"999": 1}},
            {"logprobs": 1000},
            {"stop_tokens": [VOCAB_SIZE]},
            {"seed": -1},
            {"seed": 1 << 64},
            {"top_k": 1 << 32},
            {"stop_tokens": [1 << 32]},
            {"stop": object()},
        ]:
            with self.subTest(options), self.assertRaises(mistral.ArgumentError) as caught:
                session.generate([1], **options)
            name = next(iter(options)) if options != {"stop": options.get("stop")} else "options"
            self.assertIn(name, str(caught.exception))
        self.assertEqual(session.stats["tokens"], 0)  # Nothing was evaluated, and the session is free.

    def test_constraints_are_obeyed(self):
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dög"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["kind", "count"],
            "additionalProperties": False,
        }
        for seed in range(5):
            options = {"max_tokens": 200, "temperature": 5.0, "seed": seed}

            def text(**constraint):
                events = list(self.session().generate([1], **options, **constraint))
                self.assertEqual(events[-1].finish_reason, "stop")
                return "".join(event.text for event in events)

            value = json.loads(text(json_schema=schema))
            self.assertEqual(list(value), ["kind", "count"])
            self.assertIn(value["kind"], ("cat", "dög"))
            self.assertIn(value["count"], range(100))
            self.assertRegex(text(regex=r"(he|ll){2}-\d{3}"), r"^(he|ll){2}-\d{3}$")
            self.assertIn(text(grammar='start: "yes" | "no"'), ("yes", "no"))
        events = list(self.session().generate([1], max_tokens=9, json_object=True))
        self.assertEqual(events[0].text, "{")

    def test_constraints_that_cannot_be_honoured_are_refused(self):
        session, deep = self.session(), {"type": "null"}
        for _ in range(200):
            deep = {"items": deep}
        for options, error, name in [
            ({"json_schema": {"not": {}}}, mistral.UnsupportedError, "json_schema"),
            ({"json_schema": {"type": "elephant"}}, mistral.ArgumentError, "json_schema"),
            ({"json_schema": {"allOf": [{"type": "null"}, {"type": "string"}]}}, mistral.ArgumentError, "json_schema"),
            # The options themselves are read no deeper than that.
            ({"json_schema": deep}, mistral.ArgumentError, "options"),
            ({"json_schema": {"const": "x" * (2 << 20)}}, mistral.LimitError, "json_schema"),
            ({"regex": "("}, mistral.ArgumentError, "regex"),
            ({"regex": ""}, mistral.ArgumentError, "regex"),
            ({"regex": "a" * 70_000}, mistral.LimitError, "regex"),
            ({"grammar": "start: start"}, mistral.ArgumentError, "grammar"),
            ({"grammar": "start: " + "(" * 50_000}, mistral.ArgumentError, "grammar"),
            ({"json_object": True, "regex": "a"}, mistral.ArgumentError, "regex"),
        ]:
            with self.subTest(str(options)[:60]), self.assertRaises(error) as caught:
                session.generate([1], **options)
            self.assertIn(name, str(caught.exception))
        self.assertEqual(session.stats["tokens"], 0)

    def test_a_constraint_of_too_much_work_ends_in_a_limit(self):
        options = {"grammar": 'start: e\ne: e e | e e e | e e e e | e e e e e | "a"', "ignore_eos": True, "max_tokens": 2000}
        with self.assertRaises(mistral.LimitError), self.session(context=4096).generate([1], **options) as generation:
            for _ in generation:
                pass

    def test_cancel_from_another_thread(self):
        cancel, session = mistral.Cancel(), self.session()
        events, others = [], []
        with self.assertRaises(mistral.CancelledError):
            for event in session.generate([1], cancel=cancel, ignore_eos=True):
                events.append(event)
                if len(events) == 3:
                    thread = threading.Thread(target=lambda: others.append(cancel.cancel()))
                    thread.start()
                    thread.join()
        self.assertEqual((len(events), others), (3, [None]))
        session.reset()

    def test_sessions_on_threads(self):
        def run(_seed, results):
            with self.model.session(context=64) as session:
                results.append([e.token for e in session.generate([9, 8], max_tokens=30, ignore_eos=True)])

        results = []
        threads = [threading.Thread(target=run, args=(seed, results)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 8)
        self.assertTrue(all(tokens == results[0] for tokens in results))


class Chat(WithModel):
    REQUEST = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}

    def test_response(self):
        response = self.model.chat(self.REQUEST)
        self.assertEqual(response["object"], "chat.completion")
        choice = response["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertIn(choice["finish_reason"], ("stop", "length"))

    def test_the_chunks_are_the_response(self):
        with self.model.chat(self.REQUEST, stream=True) as stream:
            chunks = list(stream)
        self.assertEqual({chunk["object"] for chunk in chunks}, {"chat.completion.chunk"})
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        self.assertEqual(text, self.model.chat(self.REQUEST)["choices"][0]["message"]["content"])

    def test_a_session_does_not_evaluate_a_conversation_again(self):
        session = self.session()
        first = session.chat(self.REQUEST)
        messages = self.REQUEST["messages"] + [
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "and"},
        ]
        request = {"messages": messages, "max_tokens": 8}
        with session.chat(request, stream=True) as stream:
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
        again = session.chat(request)
        self.assertEqual(text, self.model.chat(request)["choices"][0]["message"]["content"])
        self.assertEqual(text, again["choices"][0]["message"]["content"])
        prompt = first["usage"]["prompt_tokens"]
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertEqual(
            again["usage"]["prompt_tokens_details"]["cached_tokens"], again["usage"]["prompt_tokens"] - 1
        )
        # The stream evaluated what the first turn had not; the last call, one token.
        evaluated = again["usage"]["prompt_tokens"] - prompt
        self.assertGreaterEqual(session.stats["prompt_tokens"], prompt + evaluated)
        self.assertLess(session.stats["prompt_tokens"], 2 * again["usage"]["prompt_tokens"])

    def test_a_stream_can_be_left(self):
        before = threading.active_count()
        for _ in range(10):
            for chunk in self.model.chat({**self.REQUEST, "max_tokens": 200}, stream=True):
                break
        gc.collect()
        self.assertEqual(threading.active_count(), before)

    def test_a_stream_that_is_closed_wakes_its_readers(self):
        end, ended = threading.Event(), []
        self.addCleanup(end.set)

        def answer(*_):
            end.wait(60)
            raise mistral.CancelledError("the answer")

        with unittest.mock.patch.object(_chat, "_chat", answer):
            stream = self.model.chat(self.REQUEST, stream=True)
        readers = [threading.Thread(target=lambda: ended.append(list(stream)), daemon=True) for _ in range(2)]
        closing = threading.Thread(target=stream.close, daemon=True)
        for thread in (*readers, closing):
            thread.start()
        for reader in readers:
            reader.join(20)
        # Closing waits for the answer to end, the readers do not.
        self.assertEqual((ended, closing.is_alive()), ([[], []], True))
        end.set()
        closing.join(20)
        self.assertFalse(closing.is_alive())

    def test_all_readers_of_a_stream_end(self):
        expected = list(self.model.chat(self.REQUEST, stream=True))
        stream, chunks = self.model.chat(self.REQUEST, stream=True), []
        readers = [threading.Thread(target=lambda: chunks.extend(stream), daemon=True) for _ in range(5)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(20)
        self.assertFalse(any(reader.is_alive() for reader in readers))
        self.assertEqual(len(chunks), len(expected))

    def test_the_request_of_a_stream_is_that_of_the_call(self):
        request = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        expected, start = self.model.chat(request)["choices"][0]["message"]["content"], threading.Event()

        class Late(threading.Thread):
            def run(self):
                start.wait(60)
                super().run()

        with unittest.mock.patch.object(threading, "Thread", Late):
            stream = self.model.chat(request, stream=True)
        request["messages"][0]["content"] = "goodbye"
        start.set()
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
        self.assertEqual(text, expected)

    def test_errors(self):
        for stream in (False, True):
            for request in ({}, {"messages": 1}, {"messages": [{"role": "user", "content": object()}]}):
                with self.subTest(request), self.assertRaises(mistral.ArgumentError):
                    list(self.model.chat(request, stream=stream))

    def test_the_interpreter_can_end_in_the_middle(self):
        program = (
            f"import sys; sys.path.insert(0, {sys.path[0]!r}); import mistral\n"
            f"mistral.load_library({LIBRARY!r})\n"
            f"model = mistral.Model({MODEL!r})\n"
            f"stream = model.chat({ {**self.REQUEST, 'max_tokens': 200}!r}, stream=True)\n"
            "next(stream)\n"
            "session = model.session(context=64)\n"
            "generation = session.generate([1])\n"
            "next(generation)\n"
        )
        run = subprocess.run([sys.executable, "-B", "-I", "-c", program], capture_output=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, b"", b""))


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


class Spawning(WithModel):
    def test_a_pool_of_processes_with_models_of_their_own(self):
        expected = answer_of(self.model)
        with multiprocessing.get_context("spawn").Pool(2, open_in_worker, (LIBRARY, MODEL)) as pool:
            self.assertEqual(pool.map(answer_in_worker, range(4)), [expected] * 4)
            with self.assertRaises(mistral.ContextFullError):
                pool.apply(answer_in_worker, (0, 2))


def conforms(value, schema, at="card"):
    """What of a value breaks a schema, of the keywords that the schema of the card uses."""
    names = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    if "const" in schema and value != schema["const"] or "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r}"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and type(value) not in [names[kind] for kind in kinds]:
        return [f"{at}: {type(value).__name__}"]
    wrong = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        wrong += [f"{at}: no {key}" for key in schema.get("required", []) if key not in value]
        if schema.get("additionalProperties") is False:
            wrong += [f"{at}: {key}" for key in value if key not in properties]
        for key in properties.keys() & value.keys():
            wrong += conforms(value[key], properties[key], f"{at}.{key}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            wrong += conforms(item, schema.get("items", {}), f"{at}[{i}]")
    return wrong


class Evidence(WithModel):
    def schema(self):
        return json.loads((Path(mistral.__file__).parent / "system_card.schema.json").read_text())

    def test_the_system_card_obeys_its_schema(self):
        plain = system_card.card(self.model)
        self.assertEqual(conforms(plain, self.schema()), [])
        self.assertEqual(plain["determinism"]["levels"], [])
        self.assertRegex(plain["model"]["weights"]["files"][0]["sha256"], "^[0-9a-f]{64}$")
        self.assertIn("**Not verified**", system_card.markdown(plain))
        self.assertIn("the maker of the system has to", system_card.markdown(plain))
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder, "manifest")
            manifest.write_text(f"{hashlib.sha256(Path(MODEL).read_bytes()).hexdigest()}  {Path(MODEL).name}\n")
            options = {"reproducible": True, "verify": {"manifest": str(manifest)}, "audit": {"path": str(Path(folder, "log"))}}
            with mistral.Model(MODEL, **options) as model:
                full = system_card.card(model, purpose="a test", contact="nobody")
        self.assertEqual(conforms(full, self.schema()), [])
        self.assertEqual(full["determinism"]["levels"], ["D1", "D2", "D3"])
        written = system_card.markdown(full)
        for part in ("a test", "by a manifest", "D1, D2, D3", "An audit log is written"):
            self.assertIn(part, written)
        # The checker is one.
        self.assertNotEqual(conforms({**full, "audit": 1}, self.schema()), [])
        self.assertNotEqual(conforms({**full, "more": 1}, self.schema()), [])

    def test_the_command_prints_a_card(self):
        arguments = [sys.executable, "-B", "-m", "mistral.system_card", MODEL, "--library", LIBRARY]
        environment = {**os.environ, "PYTHONPATH": str(Path(mistral.__file__).parents[1])}
        for form, start in (("json", b"{"), ("markdown", b"# System card")):
            run = subprocess.run([*arguments, "--format", form], capture_output=True, timeout=60, env=environment)
            self.assertEqual((run.returncode, run.stderr), (0, b""))
            self.assertTrue(run.stdout.startswith(start), run.stdout)

    def test_an_answer_is_marked_as_generated(self):
        request = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "n": 2, "temperature": 1, "sidecar": True}
        choices = self.model.chat(request)["choices"]
        for choice in choices:
            self.assertTrue(choice["sidecar"]["ai_generated"])
            self.assertTrue(mistral.check_sidecar(choice["sidecar"], choice["message"]["content"]))
            self.assertFalse(mistral.check_sidecar(choice["sidecar"], choice["message"]["content"] + "."))
            self.assertFalse(mistral.check_sidecar({**choice["sidecar"], "ai_generated": False}, choice["message"]["content"]))
        self.assertEqual(len(choices), 2)
        self.assertNotIn("sidecar", self.model.chat({**request, "sidecar": False})["choices"][0])


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
                with mistral.Model(MODEL, threads=2) as own:
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
                    with mistral.Model(MODEL) as own:
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
            f"mistral.load_library({LIBRARY!r})\n"
            f"model = mistral.Model({MODEL!r})\n"
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
