"""A system card: what runs, how, and what vouches for it, for those who document or audit a system that has a model inside.

$ python3 -m mistral.system_card MODEL --options '{"reproducible": true}' --format markdown

The facts come from the library and the model that it opens; what the system is for, and how its risks are handled, only its maker knows: ``--purpose`` and
``--contact`` put that in, and without them the card says that it is missing. ``system_card.schema.json`` beside this file is the schema of the JSON form.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from typing import Any, Dict, List, Mapping, Optional

from ._library import build_info, load_library
from ._model import Model

SCHEMA = "mistral.system-card/1"

#: What no option changes, and where it is held.
PROMISES = {
    "network": "none: no network code is in the library or its dependencies",
    "environment": "no environment variable, working or home folder is read; no file but those that are named. Not held: what a GPU's driver "
    "reads, and RUST_BACKTRACE, which a crate looks for when a schema or grammar is refused",
    "model_code": "none: weights are safetensors or GGUF; chat templates run with limits on their work",
    "memory": "what is freed is overwritten before it is used again",
    "errors": "errors and log messages quote no prompt, answer or key",
}


def card(model: Model, *, purpose: Optional[str] = None, contact: Optional[str] = None) -> Dict[str, Any]:
    """The card of an open model, as a dictionary. Computes the digests of its files where they are not known yet."""
    if model.info["weights"] is not None:
        # A saved session names its model by them.
        with model.session(context=1) as session:
            session.save()
    info = model.info
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "purpose": purpose,
        "contact": contact,
        "library": build_info(),
        "model": {"path": info["path"], "weights": info["weights"], "tokenizer": info["tokenizer"]},
        "runtime": {key: info[key] for key in ("device", "threads", "kernels", "activation", "generator")},
        "determinism": info["determinism"],
        "verification": info["verified"],
        "audit": info["audit"],
        "promises": PROMISES,
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The card for people."""
    weights, verified, determinism = found["model"]["weights"], found["verification"], found["determinism"]
    missing = "*not stated: the maker of the system has to*"
    lines = [
        f"# System card: {found['model']['path']}",
        "",
        f"Written {found['created']} by mistral {found['library']['version']}. It describes; it does not certify.",
        "",
        f"- **Purpose**: {found['purpose'] or missing}",
        f"- **Contact**: {found['contact'] or missing}",
        "",
        "## Model",
        "",
    ]
    if weights:
        lines += [
            f"- **Architecture**: {weights['architecture']}, {weights['n_layers']} layers of {weights['dim']}, "
            f"{weights['vocab_size']} tokens, context of {weights['max_context']}",
            "",
            *_table(["file", "bytes", "SHA-256"], [[f["path"], f["bytes"], f"`{f['sha256']}`"] for f in weights["files"]]),
        ]
    lines += ["", "## Where it came from", ""]
    if verified:
        signature = verified["signature"]
        signed = f"signed on {signature['curve']} with the key `{signature['key']}`" if signature else "by a manifest"
        lines.append(f"Its files were verified before they were used ({signed}); digest `{verified['digest']}`.")
    else:
        lines.append("**Not verified**: the model was opened without the option `verify`.")
    lines += ["", "## How it runs", "", *_table(["", ""], [[key, value] for key, value in found["runtime"].items()])]
    levels = ", ".join(determinism["levels"])
    lines += ["", "## Determinism", "", f"Guaranteed: {levels}, on {determinism['scope']}." if levels else "**Not guaranteed**: opened without `reproducible`."]
    audit = "An audit log is written." if found["audit"] else "**No audit log** is attached to the model."
    lines += ["", "## Record-keeping", "", audit, "", "## What the library promises", ""]
    lines += [f"- **{key}**: {value}" for key, value in found["promises"].items()]
    return "\n".join(lines) + "\n"


def _table(head: List[str], rows: List[List[Any]]) -> List[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]]


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="mistral.system_card", description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--options", type=json.loads, default={}, help="of mistral.Model, as a JSON object")
    parser.add_argument("--format", choices=("json", "markdown"), default="json")
    parser.add_argument("--purpose")
    parser.add_argument("--contact")
    parser.add_argument("--library", help="the C library, where it is not the package's")
    given = parser.parse_args(arguments)
    if given.library:
        load_library(given.library)
    with Model(given.model, **given.options) as model:
        found = card(model, purpose=given.purpose, contact=given.contact)
    sys.stdout.write(markdown(found) if given.format == "markdown" else json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
