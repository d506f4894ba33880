"""The code of every document is run as it stands, every link leads somewhere, and the site is whole."""

import html.parser
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from urllib.parse import unquote, urldefrag, urlsplit
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from documents import DOCUMENTS, ROOT, code, files, steps, write_files

from harness.cli import app
from harness.decoders import decoders

NAMES = {document.relative_to(ROOT).as_posix(): document for document in DOCUMENTS}
GENERATED = ROOT / "docs" / "generated"


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Features of real images, which take seconds and are the same in every document."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def shell(tmp_path, monkeypatch, references):
    """Run a script in an empty folder with `harness` on its path and a home of its own; its exit code and output."""
    commands, home, folder = tmp_path / "bin", tmp_path / "home", tmp_path / "work"
    for made in (commands, home, folder):
        made.mkdir()
    cache = home / "cache" / "nf-decoding-harness"
    cache.mkdir(parents=True)
    (cache / "references").symlink_to(references)
    (commands / "harness").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness "$@"\n')
    (commands / "harness").chmod(0o755)
    monkeypatch.chdir(folder)
    for name, value in {
        "PATH": os.pathsep.join([str(commands), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)

    def run(script, *arguments):
        command = ["bash", "-euc", script, "bash", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
        return done.returncode, done.stdout + done.stderr

    run.folder = folder
    return run


@pytest.fixture
def here(shell, monkeypatch):
    """Run one command in this process, which has imported all that it needs, and forget the modules it found."""
    monkeypatch.syspath_prepend(shell.folder)
    monkeypatch.setattr(decoders, "_objects", dict(decoders.items()))

    def run(command):
        done = CliRunner().invoke(app, shlex.split(command)[1:], standalone_mode=False)
        return done.return_value or 0 if done.exception is None else repr(done.exception), done.output

    yield run
    for path in shell.folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


def assert_it_runs(document, shell, here, slow=False):
    """Do what a document says, from its first block to its last; `here` is what runs its commands, or the shell."""
    write_files(document, shell.folder)
    names = {"__name__": "document"}
    for block in code(document, slow):
        if block.language == "python":
            exec(compile(block.text, str(document), "exec"), names)
            continue
        for step in steps(block):
            status, output = (here if step.startswith("harness ") else shell)(step)
            assert status == 0, f"{step}\n{output}"


@pytest.mark.parametrize("name", [name for name, document in NAMES.items() if code(document)])
def test_the_code_of_a_document_runs(name, shell, here):
    assert_it_runs(NAMES[name], shell, here)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, document in NAMES.items() if len(code(document, slow=True)) > len(code(document))]
)
def test_all_code_of_a_document_runs(name, shell):
    assert_it_runs(NAMES[name], shell, shell, slow=True)


def test_the_recipe_for_continuous_integration_in_a_scratch_repository(shell):
    """A head whose decoder iterates longer fails; a run beside itself does not."""
    recipe, decoder = NAMES["docs/tutorials/ci.md"], "tight_first.py"
    write_files(recipe, shell.folder)
    workflow = files(recipe)[".github/workflows/speed.yml"]
    [command] = re.findall(r"run: (bash .*)", workflow)
    assert re.findall(r"(BASE|HEAD): \$\{\{ github\.event\.pull_request\.(base|head)\.sha \}\}", workflow)

    def commit(message):
        status, output = shell(
            "git add -A . ':!work' ':!runs'; git -c user.name=me -c user.email=me@example.org commit -qm \"$1\" "
            "--allow-empty; git rev-parse HEAD",
            message,
        )
        assert status == 0, output
        return output.split()[-1]

    shell("git init -q .")
    base = commit("the decoder")
    source = (shell.folder / decoder).read_text()
    (shell.folder / decoder).write_text(source.replace("tighten: float = 0.1", "tighten: float = 0.001"))
    slower = commit("a tighter threshold")

    status, output = shell(f"export BASE={base} HEAD={slower} GITHUB_STEP_SUMMARY=summary.md; {command}")
    summary = (shell.folder / "summary.md").read_text()
    assert status == 1 and re.search(r"^\| slower[^|]* ! \|.* tight first .*\|$", summary, re.M), output
    assert "regressed (marked !)" in summary
    cases = ElementTree.parse(shell.folder / "speed.xml").getroot().findall("testcase")
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["tight first tau 0.5"]
    assert shell("harness compare runs/base runs/base")[0] == 0


LINK = re.compile(r"(?<!`)\[[^\]\[]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", NAMES)
def test_the_links_of_a_document_lead_somewhere(name):
    """Links to files; of those that the site's build writes, that its code names them."""
    document = NAMES[name]
    written = (ROOT / "docs" / "generate.py").read_text(encoding="utf-8")
    for link in LINK.findall(re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)):
        if urlsplit(link).scheme or link.startswith("#"):
            continue
        target = (document.parent / urldefrag(link)[0]).resolve()
        if target.is_relative_to(GENERATED):
            page = target.relative_to(GENERATED)
            stored = ROOT / "results" / page
            assert stored.is_file() or f'"{page.with_suffix("")}"' in written, f"{name}: {link}"
        else:
            assert target.exists(), f"{name}: {link}"


def test_every_page_is_named_once_in_the_table_of_contents():
    index = NAMES["docs/index.md"].read_text(encoding="utf-8")
    listed = re.findall(r"^\w+/[\w/-]+$", index, re.M)
    pages = [name.removeprefix("docs/").removesuffix(".md") for name in NAMES if name.startswith("docs/")]
    assert sorted(page for page in pages if page != "index") == sorted(page for page in listed if page in pages)
    assert len(listed) == len(set(listed))


class Page(html.parser.HTMLParser):
    """What a built page points at, what it loads, and what can be pointed at in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("img", "script", "iframe", "source") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.loaded.append(attributes["href"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the site is built with the extra 'docs'")
def test_the_site_is_built_without_a_warning_and_every_link_in_it_leads_somewhere(tmp_path):
    built = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-d", tmp_path / "trees"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, ROOT / "docs", built], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    pages = {path.resolve(): Page(path) for path in built.rglob("*.html")}
    assert len(pages) > 30
    for path, page in pages.items():
        assert [link for link in page.loaded if urlsplit(link).scheme not in ("", "data")] == [], path
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
    for style in built.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import ['\"]?https?:", style.read_text(encoding="utf-8")), style
