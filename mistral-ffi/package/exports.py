"""What the header declares, in the forms that linkers read. The header is the only list of the functions that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Tuple


class Header:
    """`include/mistral.h`: the version and the functions that it declares."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="ascii")
        numbers = re.findall(r"^#define MISTRAL_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", text, re.MULTILINE)
        self.functions: List[str] = re.findall(r"^MISTRAL_API\n[^;(]*?\b(mistral_\w+)\(", text, re.MULTILINE)
        if len(numbers) != 3 or not self.functions:
            raise ValueError(f"{path}: found {len(numbers)} version numbers and {len(self.functions)} functions")
        self.version: Tuple[str, ...] = tuple(numbers)

    @property
    def major(self) -> str:
        """The version of the ABI: a part of the names of the libraries and of the symbols' version."""
        return self.version[0]

    def version_script(self) -> str:
        """For GNU ld, lld, gold and mold: every function under one version, all else hidden."""
        names = "".join(f"    {name};\n" for name in self.functions)
        return f"MISTRAL_{self.major} {{\n  global:\n{names}  local:\n    *;\n}};\n"

    def exported_symbols(self) -> str:
        """For Apple's ld (`-exported_symbols_list`): C names have an underscore before them."""
        return "".join(f"_{name}\n" for name in self.functions)

    def definition(self) -> str:
        """For Microsoft's link and MinGW's dlltool: a module-definition file."""
        names = "".join(f"  {name}\n" for name in self.functions)
        return f"LIBRARY mistral-{self.major}.dll\nEXPORTS\n{names}"
