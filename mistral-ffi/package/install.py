#!/usr/bin/env python3
"""Installs mistral as a C library: install.py --prefix PREFIX

Builds it with cargo and writes, below the prefix, the shared and the static library, the headers of C and C++, `mistral.pc` for
pkg-config and a package for CMake with the target `mistral::mistral`. It needs cargo, a C compiler and, on Linux, GNU binutils.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict

from exports import Header
from link import REPOSITORY, SYSTEM_LIBRARIES, Names, Tools, libraries

HERE = Path(__file__).resolve().parent
HEADERS = ["mistral.h", "mistral.hpp"]


def main() -> None:
    arguments = parse()
    header = Header(REPOSITORY / "include" / "mistral.h")
    built = arguments.static_library or build(arguments.system, arguments.features)
    prefix = arguments.prefix.absolute()
    below = {name: prefix / getattr(arguments, f"{name}dir") for name in ("lib", "include", "bin")}
    root = {name: destination(arguments.destdir, path) for name, path in below.items()}
    for path in root.values():
        path.mkdir(parents=True, exist_ok=True)
    for name in HEADERS:
        shutil.copyfile(REPOSITORY / "include" / name, root["include"] / name)
    tools = Tools(**{name: tuple(shlex.split(getattr(arguments, name))) for name in Tools.__dataclass_fields__})
    with tempfile.TemporaryDirectory(dir=root["lib"]) as folder:
        names = libraries(arguments.system, built, header, Path(folder), tools, arguments.debug)
        for file in Path(folder).iterdir():
            os.replace(file, root["bin" if file.suffix == ".dll" else "lib"] / file.name)
    for link in names.links:
        (root["lib"] / link).unlink(missing_ok=True)
        (root["lib"] / link).symlink_to(names.shared)
    if not any(root["bin"].iterdir()):
        root["bin"].rmdir()
    describe(arguments.system, header, names, prefix, below, root["lib"])


def this_system() -> str:
    return {"darwin": "darwin", "win32": "windows"}.get(sys.platform, "linux")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Installs mistral as a C library.")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"), help="default: %(default)s")
    parser.add_argument("--destdir", type=Path, help="write below this folder, for a package to be made of it")
    for name in ("lib", "include", "bin"):
        parser.add_argument(f"--{name}dir", default=name, help="below the prefix; default: %(default)s")
    parser.add_argument("--static-library", type=Path, help="what cargo has built, if it is not to build it now")
    parser.add_argument("--features", default="", help="features of mistral-ffi beside the default ones: wgpu")
    parser.add_argument("--debug", action="store_true", help="keep what debuggers read")
    systems = sorted(SYSTEM_LIBRARIES)
    parser.add_argument("--system", choices=systems, default=this_system(), help="what to install for; default: %(default)s")
    for name, field in Tools.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", default=field.default[0], help="default: %(default)s")
    return parser.parse_args()


def build(system: str, features: str = "") -> Path:
    """The static library, built by cargo."""
    command = ["cargo", "build", "--release", "--locked", "-p", "mistral-ffi", "--features", features]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    output = subprocess.run(metadata, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
    name = "mistral.lib" if system == "windows" else "libmistral.a"
    return Path(json.loads(output)["target_directory"]) / "release" / name


def destination(destdir: Path, path: Path) -> Path:
    return destdir.absolute() / path.relative_to(path.anchor) if destdir else path


def describe(
    system: str, header: Header, names: Names, prefix: Path, below: Dict[str, Path], lib: Path
) -> None:
    """Writes what pkg-config and CMake read."""
    cmake = lib / "cmake" / "mistral"
    (lib / "pkgconfig").mkdir(exist_ok=True)
    cmake.mkdir(parents=True, exist_ok=True)
    system_libraries = SYSTEM_LIBRARIES[system]
    values = {
        "PREFIX": prefix.as_posix(),
        "LIBDIR": below["lib"].as_posix(),
        "INCLUDEDIR": below["include"].as_posix(),
        "VERSION": ".".join(header.version),
        "MAJOR": header.major,
        "SYSTEM_LIBRARIES": " ".join(system_libraries),
        "SYSTEM_LIBRARIES_LIST": ";".join(system_libraries),
        "INCLUDE_FROM_CMAKE": Path(os.path.relpath(below["include"], below["lib"] / "cmake" / "mistral")).as_posix(),
        "BIN_FROM_LIB": Path(os.path.relpath(below["bin"], below["lib"])).as_posix(),
        "STATIC": names.static,
    }
    values["SHARED_PROPERTIES"] = shared_properties(system, header, names, values["BIN_FROM_LIB"])
    for name, folder in [
        ("mistral.pc", lib / "pkgconfig"),
        ("mistralConfig.cmake", cmake),
        ("mistralConfigVersion.cmake", cmake),
    ]:
        text = (HERE / f"{name}.in").read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (folder / name).write_text(text, encoding="utf-8")


def shared_properties(system: str, header: Header, names: Names, bin_from_lib: str) -> str:
    """Where CMake finds the shared library."""
    if system == "windows":
        properties = {
            "IMPORTED_LOCATION": f"${{_mistral_lib}}/{bin_from_lib}/{names.shared}",
            "IMPORTED_IMPLIB": f"${{_mistral_lib}}/{names.import_library}",
        }
    else:
        soname = f"@rpath/{names.shared}" if system == "darwin" else f"libmistral.so.{header.major}"
        properties = {"IMPORTED_LOCATION": f"${{_mistral_lib}}/{names.shared}", "IMPORTED_SONAME": soname}
    return "\n".join(f'    {key} "{value}"' for key, value in properties.items())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"install.py: {error}")
