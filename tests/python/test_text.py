"""Text and tokens, with a model and with a tokenizer alone."""

import array
import json
import shutil
import tempfile
import unittest

import mistral
import support
from support import FIXTURES, HELLO, VOCAB_SIZE, WithModel


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
        model = self.open(support.MODEL)
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
