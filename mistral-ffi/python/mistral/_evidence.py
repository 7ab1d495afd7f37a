"""Whether a model is the one that someone vouched for, and whether an audit log is whole."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from ctypes import c_void_p
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Union

from ._library import library, options, take, text
from ._steering import Cancel, Progress, Reporter, handle_of

_Path = Union[str, bytes, "os.PathLike[str]"]


def verify(
    path: _Path,
    *,
    manifest: Optional[_Path] = None,
    signature: Optional[_Path] = None,
    keys: Iterable[str] = (),
    ignore: Iterable[str] = (),
    progress: Optional[Callable[[Progress], object]] = None,
    cancel: Optional[Cancel] = None,
) -> Dict[str, Any]:
    """Verifies the files of a model against a manifest of their SHA-256 or a signature of OpenSSF Model Signing, offline; returns
    the report. ``Model(path, verify={...})`` with the same options makes it a condition of opening.

    ``manifest`` is a file ``{"files": [{"name", "sha256", "bytes"}]}``, or what ``sha256sum`` writes. ``signature`` is a Sigstore bundle made
    with a bare key, which must be one of ``keys``: public keys as PEM, ECDSA on P-256, P-384 or P-521. ``ignore`` names files and
    folders that may lie in the folder although nothing vouches for them.
    """
    values = {
        "manifest": None if manifest is None else os.fsdecode(manifest),
        "signature": None if signature is None else os.fsdecode(signature),
        "keys": list(keys),
        "ignore": list(ignore),
    }
    return _report(library().mistral_verify, path, values, progress, cancel)


def audit_verify(
    path: _Path,
    *,
    checkpoints: Iterable[Mapping[str, Any]] = (),
    checkpoint_key: Optional[str] = None,
    allow_incomplete: bool = False,
    progress: Optional[Callable[[Progress], object]] = None,
    cancel: Optional[Cancel] = None,
) -> Dict[str, Any]:
    """Verifies an audit log, which models and sessions with the option ``audit`` write; returns the report.

    Every record that was changed, removed or moved is found; what was cut off at the end, against ``checkpoints``: the ``"checkpoint"`` of an
    earlier report or of ``Model.info["audit"]``, or the content of the file that the option ``audit`` names. ``checkpoint_key``
    (hexadecimal digits or Base64) is the key that must have signed them. ``allow_incomplete`` allows the beginning of a record at the end, as
    a crash leaves it.
    """
    values = {
        "checkpoints": [dict(checkpoint) for checkpoint in checkpoints],
        "checkpoint_key": checkpoint_key,
        "allow_incomplete": allow_incomplete,
    }
    return _report(library().mistral_audit_verify, path, values, progress, cancel)


def check_sidecar(sidecar: Mapping[str, Any], text: str) -> bool:
    """Whether a sidecar, which :meth:`mistral.Model.chat` gives for requests with ``"sidecar": True``, says that this very text was generated."""
    # What is no text was not generated.
    data = text.encode("utf-8", "surrogatepass")
    output = sidecar.get("output", {})
    return (
        sidecar.get("schema") == "mistral.sidecar/1"
        and sidecar.get("ai_generated") is True
        and output.get("bytes") == len(data)
        and output.get("sha256") == hashlib.sha256(data).hexdigest()
    )


def _report(
    function: Any,
    path: _Path,
    values: Dict[str, Any],
    progress: Optional[Callable[[Progress], object]],
    cancel: Optional[Cancel],
) -> Dict[str, Any]:
    reporter = Reporter(progress)
    out = c_void_p()
    status = function(
        *text(os.fspath(path)),
        *options(values),
        handle_of(cancel),
        reporter.callback,
        None,
        ctypes.byref(out),
    )
    reporter.check(status)
    report: Dict[str, Any] = json.loads(take(out))
    return report
