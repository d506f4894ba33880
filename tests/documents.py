"""The documents of this repository as what their code blocks are: files, commands, Python, or shown only.

A comment before a block says what it is: ``<!-- file: NAME -->`` a file; ``<!-- slow -->`` run by the slow tests alone;
``<!-- shown: why -->`` never run. Every other block of ``sh`` or ``python`` is run, after those before it and in the
folder of the files. ``<!-- needs: DOCUMENT NAME -->`` takes a file from another document in the same folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("[!_]*.md"),
                    *(path for part in ("tutorials", "howto", "reference", "explanation")
                      for path in (ROOT / "docs" / part).glob("*.md"))])  # fmt: skip
"""Those that are written by hand."""

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.M
)
_NEEDS = re.compile(r"^<!-- needs: (\S+) (\S+) -->$", re.M)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    mark: str  # the word before the colon, "" where there is none
    of: str  # what follows it


def blocks(document):
    found = _BLOCK.finditer(document.read_text(encoding="utf-8"))
    parts = ((one["language"], one["text"], *(one["mark"] or "").partition(": ")[::2]) for one in found)
    return [Block(*part) for part in parts]


def code(document, slow=False):
    """The blocks that are run, in order."""
    wanted = ("", "slow") if slow else ("",)
    return [block for block in blocks(document) if block.language in ("sh", "python") and block.mark in wanted]


def steps(block):
    """The scripts that a block of a shell is, in order: each of its lines that is one plain command of the harness, and
    what lies between such."""
    plain = re.split(r"^(harness [^|;&<>$`\\\n]*)\n", block.text, flags=re.M)
    return [step for step in plain if step.strip()]


def files(document):
    """The files of a document by name, those that it needs of others among them."""
    text = document.read_text(encoding="utf-8")
    needed = {name: files(document.parent / other)[name] for other, name in _NEEDS.findall(text)}
    return needed | {block.of: block.text for block in blocks(document) if block.mark == "file"}


def write_files(document, folder):
    for name, text in files(document).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
