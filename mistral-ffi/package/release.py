#!/usr/bin/env python3
"""Makes a release and what an auditor asks for with it: release.py --out FOLDER

For the C library: `lib/` and `include/` as install.py writes them, made by cargo-auditable, so that the libraries hold the list of what they were made of;
`mistral.cdx.json` (CycloneDX, by cargo-cyclonedx), compared with what Cargo.lock says is shipped; `NOTICE.html` (the licences, by cargo-about); the wheel;
`checks.json` (advisories, bans, licences and sources, by cargo-deny; the tools and the compiler); `SHA256SUMS`. Everything is built twice, in two folders of
different names, and must be the same to the bit.

It builds what is committed. The four tools are installed below `--tools` from crates.io, if they are not there: they are programs of this command, and no part of
the library, whose own dependencies hold nothing that speaks to a network. cargo-deny fetches the RustSec database, or takes the copy that `--advisories` names (a git repository, for machines without a
network); `--without-advisories` leaves that out. checks.json says which. Needs cargo, git, a C compiler and GNU binutils; Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = {"cargo-auditable": "0.7.7", "cargo-cyclonedx": "0.5.9", "cargo-about": "0.9.3", "cargo-deny": "0.20.2"}
TARGET = "x86_64-unknown-linux-gnu"
PACKAGE = "mistral-ffi"
#: Where cargo-auditable keeps its list.
SECTION = ".dep-v0"
#: A package: its name and version.
Package = Tuple[str, str]


def run(command: Iterable[object], folder: Path = REPOSITORY, **environment: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout.decode()


def install_tools(folder: Path) -> None:
    for name, version in TOOLS.items():
        if not (folder / "bin" / name).exists():
            features = ["--features", "cli"] if name == "cargo-about" else []
            run(["cargo", "install", "--locked", "--root", folder, *features, f"{name}@{version}"])
    os.environ["PATH"] = f"{folder.absolute() / 'bin'}{os.pathsep}{os.environ['PATH']}"


def export(folder: Path) -> None:
    """What is committed, as files."""
    folder.mkdir(parents=True)
    archive = subprocess.Popen(["git", "archive", "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=True)
    if archive.wait():
        raise ValueError("git archive failed")


def build(source: Path, out: Path) -> None:
    """The libraries and the wheel, from a folder that nothing of the result may name."""
    cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    sysroot = run(["rustc", "--print", "sysroot"]).strip()
    remapped = {source: "/mistral", cargo_home: "/cargo", Path(sysroot): "/rust"}
    flags = " ".join(f"--remap-path-prefix={path}={name}" for path, name in remapped.items())
    environment = {"RUSTFLAGS": flags, "SOURCE_DATE_EPOCH": commit_time(), "CARGO_INCREMENTAL": "0"}
    # burn-ndarray has a number drawn at random while it is compiled (the crate const-random), but for this.
    environment["CONST_RANDOM_SEED"] = PACKAGE
    run(["cargo", "auditable", "build", "--release", "--locked", "-p", PACKAGE, "--target", TARGET], source, **environment)
    built = source / "target" / TARGET / "release"
    static, linker = built / "libmistral.a", f"cc {shlex.quote(str(list_of_parts(built)))}"
    install = source / "mistral-ffi" / "package" / "install.py"
    # Below a folder of its own, so that no file names where it was made.
    arguments = ["--prefix", "/usr", "--destdir", out, "--static-library", static, "--cc", linker]
    run([sys.executable, "-B", install, *arguments], source, **environment)
    (out / "python").mkdir()
    settings = {"static-library": str(static), "cc": linker}
    wheel = f"import build_wheel; build_wheel.build_wheel({str(out / 'python')!r}, {settings!r})"
    run([sys.executable, "-B", "-c", wheel], source / "mistral-ffi" / "python", **environment)


def list_of_parts(built: Path) -> Path:
    """An object with the section that cargo-auditable has put into cargo's own dynamic library: what is installed is linked out of the static one."""
    section, text, made = built / "dep-v0", built / "dep-v0.s", built / "dep-v0.o"
    run(["objcopy", "--dump-section", f"{SECTION}={section}", built / "libmistral.so", built / "copy"])
    # R: no linker may leave it out.
    text.write_text(f'.section {SECTION}, "aR", @progbits\n.incbin "{section}"\n.section .note.GNU-stack, "", @progbits\n')
    run(["cc", "-c", "-o", made, text])
    return made


def commit_time() -> str:
    return run(["git", "log", "-1", "--format=%ct"]).strip()


def digests(folder: Path) -> Dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shipped(repository: Path = REPOSITORY) -> Set[Package]:
    """What Cargo.lock says is in the library on this target: its normal dependencies, and theirs."""
    command = ["cargo", "tree", "-p", PACKAGE, "--locked", "--offline", "--target", TARGET]
    lines = run([*command, "--edges", "normal", "--prefix", "none", "--format", "{p}"], repository).splitlines()
    packages = {(line.split()[0], line.split()[1].removeprefix("v")) for line in lines if line}
    return packages


def components(sbom: Dict[str, Any]) -> Set[Package]:
    """What an SBOM lists, the library itself among it."""
    root = sbom["metadata"]["component"]
    return {(part["name"], part["version"]) for part in [root, *sbom.get("components", [])]}


def narrow(sbom: Dict[str, Any], parts: Set[Package]) -> Dict[str, Any]:
    """Without what is not shipped: `cargo metadata`, which cargo-cyclonedx reads, also lists optional dependencies that nothing turns on."""
    kept = [part for part in sbom.get("components", []) if (part["name"], part["version"]) in parts]
    references = {part.get("bom-ref") for part in [*kept, sbom["metadata"]["component"]]}
    edges = [
        {**edge, "dependsOn": [to for to in edge.get("dependsOn", []) if to in references]}
        for edge in sbom.get("dependencies", [])
        if edge["ref"] in references
    ]
    return {**sbom, "components": kept, "dependencies": edges}


def compare(found: Set[Package], expected: Set[Package]) -> List[str]:
    """How a list of packages differs from that of the lock file."""
    differences = [f"{name} {version} is shipped and not listed" for name, version in sorted(expected - found)]
    return differences + [f"{name} {version} is listed and not shipped" for name, version in sorted(found - expected)]


def write_sbom(source: Path, out: Path) -> None:
    manifest = source / "mistral-ffi" / "Cargo.toml"
    command = ["cargo", "cyclonedx", "--format", "json", "--target", TARGET, "--no-build-deps", "--manifest-path", manifest]
    run(command, source, SOURCE_DATE_EPOCH=commit_time())
    written = next(manifest.parent.glob("*.cdx.json"))
    parts = shipped(source)
    sbom = narrow(json.loads(written.read_text(encoding="utf-8")), parts)
    differences = compare(components(sbom), parts)
    if differences:
        raise ValueError("the SBOM is not what Cargo.lock says:\n" + "\n".join(differences))
    # Where it was made is nobody's business.
    text = (json.dumps(sbom, indent=2) + "\n").replace(str(source), "/mistral")
    (out / "mistral.cdx.json").write_text(text, encoding="utf-8")


def embedded(library: Path) -> Set[Package]:
    """What the library itself says that it was made of (the section that cargo-auditable adds), macros that ran while it was compiled among it."""
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "section"
        run(["objcopy", "--dump-section", f"{SECTION}={section}", library, Path(folder) / "copy"])
        listed = json.loads(zlib.decompress(section.read_bytes()))
    return {(part["name"], part["version"]) for part in listed["packages"]}


def checks(source: Path, database: Optional[Path], advisories: bool) -> Dict[str, Any]:
    kinds = (["advisories"] if advisories else []) + ["bans", "licenses", "sources"]
    environment, state = {}, ""
    if database is not None:
        # The copy stands for the address, and what cargo-deny makes of it lies beside the sources, not in the user's folder.
        copy = {f"url.{database.absolute().as_uri()}.insteadOf": "https://github.com/RustSec/advisory-db", "safe.directory": "*"}
        environment["GIT_CONFIG_COUNT"] = str(len(copy))
        for i, (key, value) in enumerate(copy.items()):
            environment |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
        rules, place = source / "deny.toml", f"db-path = {json.dumps(str(source / 'advisories'))}"
        rules.write_text(rules.read_text(encoding="utf-8").replace("[advisories]", f"[advisories]\n{place}"), encoding="utf-8")
        state = run(["git", "log", "-1", "--format=, in the database as of %cs (%H)"], database).strip()
    run(["cargo", "deny", "--locked", "check", *kinds], source, **environment)
    accepted = sorted(set(re.findall(r"RUSTSEC-\d{4}-\d{4}", (source / "deny.toml").read_text(encoding="utf-8"))))
    return {
        "cargo_deny": kinds,
        "advisories": f"none that applies but for those accepted{state}" if advisories else "NOT CHECKED",
        "accepted_advisories": accepted,
        "rustc": run(["rustc", "-vV"]).splitlines(),
        "tools": TOOLS,
        "commit": run(["git", "rev-parse", "HEAD"]).strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tools", type=Path, help="where the tools are, or are installed; default: OUT-tools")
    parser.add_argument("--advisories", type=Path, metavar="REPOSITORY", help="a copy of the RustSec database")
    parser.add_argument("--without-advisories", action="store_true")
    given = parser.parse_args()
    out = given.out.absolute()
    install_tools((given.tools or Path(f"{given.out}-tools")).absolute())
    with tempfile.TemporaryDirectory() as scratch:
        # Of different lengths, so that a path that is cut to fit shows, too.
        sources = [Path(scratch) / "a", Path(scratch) / "another folder of sources".replace(" ", "-")]
        results = [Path(scratch) / "first", Path(scratch) / "second"]
        for source, result in zip(sources, results):
            export(source)
            build(source, result)
        first, second = map(digests, results)
        if first != second:
            names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
            raise ValueError(f"built twice, these differ: {', '.join(names)}")
        shutil.copytree(results[0], out, symlinks=True)
        write_sbom(sources[0], out)
        listed, parts = embedded(next(out.rglob("libmistral.so.*.*.*"))), shipped(sources[0])
        if parts - listed:
            raise ValueError("the library does not list all of its parts:\n" + "\n".join(compare(listed & parts, parts)))
        about = ["cargo", "about", "generate", "--locked", "--manifest-path", sources[0] / "mistral-ffi" / "Cargo.toml"]
        about += ["--config", sources[0] / "about.toml", "--output-file", out / "NOTICE.html"]
        run([*about, sources[0] / "mistral-ffi" / "package" / "notice.hbs"], sources[0])
        found = checks(sources[0], given.advisories, not given.without_advisories)
        # As for the SBOM; a scanner of the library sees too much rather than too little.
        found["listed_in_the_library_and_not_shipped"] = sorted(f"{name} {version}" for name, version in listed - parts)
        (out / "checks.json").write_text(json.dumps(found, indent=2) + "\n")
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests(out).items())
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"release.py: {error}")
