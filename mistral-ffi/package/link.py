"""Makes the libraries that are installed out of the static library that cargo builds.

A cdylib of rustc takes no version script, and its staticlib exports whatever any of its crates does; so both are linked once more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

from exports import Header

REPOSITORY = Path(__file__).resolve().parents[2]

#: What a program needs beside the static library: `rustc --print native-static-libs`, without what every program has.
SYSTEM_LIBRARIES: Dict[str, List[str]] = {
    "linux": ["-lgcc_s", "-lpthread", "-lm", "-ldl"],
    "darwin": ["-liconv", "-lm"],
    "windows": ["-lkernel32", "-lntdll", "-luserenv", "-lws2_32", "-ldbghelp"],
}


@dataclass(frozen=True)
class Tools:
    """The commands to work with; each may have arguments of its own, a `--target` for example."""

    cc: Sequence[str] = ("cc",)
    ld: Sequence[str] = ("ld",)
    ar: Sequence[str] = ("ar",)
    objcopy: Sequence[str] = ("objcopy",)
    #: Microsoft's linker, or lld-link.
    link: Sequence[str] = ("link",)


@dataclass(frozen=True)
class Names:
    """What the files are called on a system."""

    shared: str
    static: str
    #: Other names of the shared library, as links to it.
    links: Sequence[str] = ()
    #: Windows: what programs are linked with in place of the shared library.
    import_library: str = ""

    @staticmethod
    def of(system: str, header: Header) -> "Names":
        """The shared library carries the version of the ABI in its name, so that two of them live side by side."""
        major, version = header.major, ".".join(header.version)
        if system == "windows":
            return Names(f"mistral-{major}.dll", "mistral_static.lib", import_library="mistral.lib")
        if system == "darwin":
            return Names(f"libmistral.{major}.dylib", "libmistral.a", ["libmistral.dylib"])
        return Names(f"libmistral.so.{version}", "libmistral.a", [f"libmistral.so.{major}", "libmistral.so"])


def libraries(system: str, built: Path, header: Header, folder: Path, tools: Tools, debug: bool = False) -> Names:
    """Writes the shared and the static library into `folder`; with `debug` they keep what debuggers read."""
    names = Names.of(system, header)
    shared, static = folder / names.shared, folder / names.static
    if system == "windows":
        exports = _write(folder / "mistral.def", header.definition())
        outputs = [f"/OUT:{shared}", f"/IMPLIB:{folder / names.import_library}", f"/DEF:{exports}"]
        system_libraries = [name.replace("-l", "") + ".lib" for name in SYSTEM_LIBRARIES[system]]
        _run(tools.link, "/DLL", "/NOLOGO", *outputs, f"/WHOLEARCHIVE:{built}", *system_libraries)
    elif system == "darwin":
        exports = _write(folder / "exports", header.exported_symbols())
        name, version = f"@rpath/{names.shared}", ".".join(header.version)
        arguments = ["-exported_symbols_list", exports, "-install_name", name, "-dead_strip"]
        arguments += ["-compatibility_version", f"{header.major}.0.0", "-current_version", version]
        linker = f"-Wl,-all_load,{','.join(map(str, arguments))}"
        _run(tools.cc, "-dynamiclib", "-o", shared, linker, built, *SYSTEM_LIBRARIES[system])
        exports.unlink()
    else:
        _elf(built, header, shared, static, tools, debug)
        return names
    # Hiding what a static library exports is done by GNU's tools, and so for ELF alone.
    shutil.copyfile(built, static)
    return names


def _elf(built: Path, header: Header, shared: Path, static: Path, tools: Tools, debug: bool) -> None:
    """All that the functions of the header reach becomes one object, of which both libraries are made."""
    whole = shared.with_name("whole.o")
    roots = [f"--undefined={name}" for name in header.functions]
    # Groups would be merged with those of another library of Rust in the same program, which are not the same.
    options = ["--whole-archive", "--gc-sections", "--force-group-allocation"]
    _run(tools.ld, "-r", *options, *roots, "-o", whole, built)
    _hide_paths(whole)
    # The standard library's bitcode: of use to its own compiler alone, and tools of an older LLVM stop at it.
    options = ["--remove-section=.llvmbc", "--remove-section=.llvmcmd", *([] if debug else ["--strip-unneeded"])]
    _run(tools.objcopy, "--wildcard", "--keep-global-symbol=mistral_*", *options, whole, whole.with_name("mistral.o"))
    whole.unlink()
    whole = whole.with_name("mistral.o")
    static.unlink(missing_ok=True)
    _run(tools.ar, "rcD", static, whole)
    script = _write(shared.with_name("exports"), header.version_script())
    # The library's threads and thread-locals do not outlive its code: dlclose leaves it where it is.
    linker = [f"--version-script={script}", f"--soname=libmistral.so.{header.major}", "--gc-sections", "-z,defs"]
    linker += ["-z,nodelete", "-z,relro", "-z,now", "--build-id", *([] if debug else ["--strip-all"])]
    arguments = [f"-Wl,{argument}" for argument in linker]
    _run(tools.cc, "-shared", "-o", shared, whole, *arguments, *SYSTEM_LIBRARIES["linux"])
    whole.unlink()
    script.unlink()


def _hide_paths(file: Path) -> None:
    """Overwrites the folders of this machine in the places that panics name, `/home/me/.cargo/.../burn-0.22/src/x.rs`.

    rustc would do it with `--remap-path-prefix`, and would build every dependency once more.
    """
    data = file.read_bytes()
    sources = _cargo_home() / "registry" / "src"
    for folder in [*sorted(sources.glob("*")), REPOSITORY]:
        prefix = f"{folder}/".encode()
        data = data.replace(prefix, b"crates".ljust(len(prefix), b"/"))
    file.write_bytes(data)


def _cargo_home() -> Path:
    return Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="ascii")
    return path


def _run(tool: Sequence[str], *arguments: object) -> None:
    subprocess.run([*tool, *map(str, arguments)], check=True)
