"""Builds the wheel of this package: Python code for any version 3, and the C library for one platform.

A build backend (PEP 517) that needs nothing of PyPI. `--config-settings static-library=PATH` takes a library that cargo has built already, `cc=COMMAND` what links it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Mapping, Optional

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "package"))

import install  # noqa: E402
from exports import Header  # noqa: E402
from link import Tools, libraries  # noqa: E402

METADATA = """\
Metadata-Version: 2.4
Name: mistral
Version: {version}
Summary: Runs Mistral's open-weight language models inside of your program
License-Expression: MIT OR Apache-2.0
License-File: LICENSE-APACHE
License-File: LICENSE-MIT
Requires-Python: >=3.9
Classifier: Programming Language :: Python :: 3
Classifier: Typing :: Typed
Description-Content-Type: text/markdown

{readme}"""


def build_wheel(
    wheel_directory: str,
    config_settings: Optional[Mapping[str, str]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    """Writes the wheel into a folder and returns its name."""
    header = Header(REPOSITORY / "include" / "mistral.h")
    version, system = ".".join(header.version), install.this_system()
    settings = config_settings or {}
    given, tools = settings.get("static-library"), Tools(cc=tuple(shlex.split(settings.get("cc", "cc"))))
    with tempfile.TemporaryDirectory() as folder:
        names = libraries(system, Path(given) if given else install.build(system), header, Path(folder), tools)
        library = Path(folder) / names.shared
        tag = f"py3-none-{platform_tag(library)}"
        # The name that `mistral._library` looks for.
        name = {"windows": "mistral.dll", "darwin": "libmistral.dylib"}.get(system, "libmistral.so")
        files = {f"mistral/{name}": library.read_bytes()}
    for path in sorted((HERE / "mistral").iterdir()):
        if path.suffix in (".py", ".json") or path.name == "py.typed":
            files[f"mistral/{path.name}"] = path.read_bytes()
    info = f"mistral-{version}.dist-info"
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    files[f"{info}/METADATA"] = METADATA.format(version=version, readme=readme).encode()
    wheel = ["Wheel-Version: 1.0", "Generator: mistral", "Root-Is-Purelib: false", f"Tag: {tag}", ""]
    files[f"{info}/WHEEL"] = "\n".join(wheel).encode()
    for licence in ("LICENSE-APACHE", "LICENSE-MIT"):
        files[f"{info}/licenses/{licence}"] = (REPOSITORY / licence).read_bytes()
    files[f"{info}/RECORD"] = record(files, f"{info}/RECORD")
    name = f"mistral-{version}-{tag}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            # The date is always the same, and so is the wheel of the same sources.
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return name


def record(files: Mapping[str, bytes], own: str) -> bytes:
    """The digest of each file, as installers check it."""
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{own},,\n"]).encode()


def platform_tag(library: Path) -> str:
    """Where the library runs: on Linux with the glibc whose symbols it asks for, or a newer one."""
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if not platform.startswith("linux_"):
        return platform
    symbols = subprocess.run(["objdump", "-T", str(library)], check=True, stdout=subprocess.PIPE).stdout.decode()
    needed = [(int(major), int(minor)) for major, minor in re.findall(r"\bGLIBC_(\d+)\.(\d+)", symbols)]
    if not needed:
        raise RuntimeError(f"{library} needs no glibc: its platform has no name here")
    major, minor = max(needed)
    return f"manylinux_{major}_{minor}_{platform[len('linux_'):]}"
