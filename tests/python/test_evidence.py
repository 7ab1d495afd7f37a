"""Audit logs, verification of models, system cards and marks of generated text."""

import array
import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import mistral
from mistral import system_card
import support
from support import SIGNED, WithModel


class Auditing(unittest.TestCase):
    KEY = "07" * 32

    def test_what_runs_is_written_and_found_again(self):
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "audit.jsonl")
            audit = {"path": log, "required": True, "key": self.KEY, "caller_ref": "case 7"}
            with mistral.Model(support.MODEL, audit=audit) as model, model.session(context=64) as session:
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
            mistral.Model(support.MODEL, audit={"path": "/nowhere/at/all/audit.jsonl", "required": True})
        with self.assertRaises(mistral.ArgumentError) as caught:
            mistral.Model(support.MODEL, audit={"path": "log", "key": "a short secret"})
        self.assertNotIn("secret", str(caught.exception))


class Verifying(unittest.TestCase):
    def test_a_manifest_is_a_condition(self):
        with tempfile.TemporaryDirectory() as folder:
            manifest = os.path.join(folder, "SHA256SUMS")
            with open(support.MODEL, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            with open(manifest, "w") as file:
                print(f"{digest}  {os.path.basename(support.MODEL)}", file=file)
            seen = []
            report = mistral.verify(support.MODEL, manifest=manifest, progress=seen.append)
            self.assertEqual(report["files"][0]["sha256"], digest)
            self.assertEqual({progress.phase for progress in seen}, {"verify"})
            with mistral.Model(support.MODEL, verify={"manifest": manifest}) as model:
                self.assertEqual(model.info["verified"], report)
            with open(manifest, "w") as file:
                print(f"{'0' * 64}  {os.path.basename(support.MODEL)}", file=file)
            for attempt in (
                lambda: mistral.verify(support.MODEL, manifest=manifest),
                lambda: mistral.Model(support.MODEL, verify={"manifest": manifest}),
            ):
                with self.assertRaises(mistral.IntegrityError) as caught:
                    attempt()
                self.assertIn(digest, str(caught.exception))
            with self.assertRaises(mistral.ArgumentError):
                mistral.verify(support.MODEL)

    def test_signatures(self):
        model, signature = SIGNED / "model", SIGNED / "p256.sig"
        with self.assertRaises(mistral.SignatureError):
            mistral.verify(model, signature=signature, keys=[(SIGNED / "p384.pem").read_text()])
        report = mistral.verify(model, signature=signature, keys=[(SIGNED / "p256.pem").read_text()])
        self.assertEqual(report["signature"]["curve"], "P-256")


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
            manifest.write_text(f"{hashlib.sha256(Path(support.MODEL).read_bytes()).hexdigest()}  {Path(support.MODEL).name}\n")
            options = {"reproducible": True, "verify": {"manifest": str(manifest)}, "audit": {"path": str(Path(folder, "log"))}}
            with mistral.Model(support.MODEL, **options) as model:
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
        arguments = [sys.executable, "-B", "-m", "mistral.system_card", support.MODEL, "--library", support.LIBRARY]
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
