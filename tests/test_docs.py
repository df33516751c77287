"""README and docs/ say what is so: links, files, commands, messages; the code of tutorials runs."""

import argparse
import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import OmegaConf

from metalearn import cli, compose
from metalearn.registry import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials" and page.name != "README.md"]
PARTS = "metalearn|tasks|tests|conf|benchmarks|docs"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block."""

    language: str
    words: list[str]  # of its info string after the language
    text: str

    @property
    def file(self) -> str | None:
        """What it is written to: `file=NAME`."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)


@functools.cache
def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(info.partition(" ")[0], info.split()[1:], text) for info, text in found]


@functools.cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*plain, *re.findall(r'<a (?:id|name)="([^"]+)"', prose(page))}


@every_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() or target == "runs", f"{page.name}: {target}"  # runs/ is made by the first run
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target}"


@every_page
def test_named_files_exist(page):
    names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    own = {Path(block.file).name for block in blocks(page) if block.file}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.fullmatch(rf"({PARTS})/[\w./]+", code) and not re.search(r"NAME|\.\.", code):
            assert list(ROOT.glob(code.rstrip("/") + "*")), f"{page.name}: {code}"
        elif re.fullmatch(r"test_\w+\.py", code):
            assert code in names | own, f"{page.name}: {code}"


def test_every_page_is_on_the_map():
    linked = set(re.findall(r"\]\(([\w/]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert linked == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]} - {"README.md"}


class Parsed(Exception):  # noqa: N818
    """The command line was read, nothing was done."""


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `metalearn ...` line and inline command that could be typed as it stands."""
    typed = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    typed += re.findall(r"`((?:uv run |python -m [^`]*-m )?metalearn [^`\n]+)`", prose(page))
    found = []
    for line in typed:
        said = re.match(rf"(?:.*?\s)?metalearn ((?:{'|'.join(cli.COMMANDS)})\s.+)", line)
        if said is None or re.search(r"\.\.\.|…|\b(NAME|PLAN|TIER|KEY|PATH|GROUP)\b|\[(--| )", line):
            continue
        words = shlex.split(re.sub(r"\s2>&1.*|\s\|\s.*|;.*", "", said[1]), comments=True)
        found.append(words)
    return found


COMMANDS = sorted({tuple(words) for page in PAGES if page not in TUTORIALS for words in commands(page)})


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] != "train"], ids=" ".join)
def test_commands_are_read(words, monkeypatch):
    """By their own parsers; recipes and problems that they name are there."""

    def stop(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        raise Parsed(argparse.ArgumentParser.parse_intermixed_args(parser, arguments))

    monkeypatch.setattr(cli.Parser, "parse_intermixed_args", stop, raising=False)
    with pytest.raises(Parsed) as caught:
        cli._dispatch(list(words))
    options = caught.value.args[0]
    if words[0] == "replicate" and not (options.list or options.status):
        plans = [name for name in options.names if "=" not in name]
        assert set(plans) <= set(compose.options("recipe"))
    if words[0] == "diagnose":
        named = [word.partition("=")[2] for word in options.settings if word.startswith("problem=")]
        assert set(named) <= {*compose.options("diagnose"), "all"}


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] == "train"], ids=" ".join)
def test_options_of_training_commands_exist(words):
    for key, _, value in (word.partition("=") for word in words[1:] if "=" in word):
        if key in (*GROUPS, "recipe", "machine", "log", "sweep", "launcher"):
            assert set(value.split(",")) <= set(compose.options(key)), (key, value)


@pytest.mark.slow
def test_training_commands_compose():
    """Every one that trains, with its own checks; a sweep is read to its points."""
    from metalearn.launch import checked
    from metalearn.sweep.reading import read

    cli.register_all()
    for words in (list(words[1:]) for words in COMMANDS if words[0] == "train"):
        if "--config-dir" in words or "-sc" in words:
            continue
        if "-m" in words:
            assert read([word for word in words if word not in ("-m", "--dry-run")]).space is not None
        else:
            checked([word for word in words if "=" in word])


@functools.cache
def sources() -> str:
    """Every text of the package, what is filled in as `...`."""
    texts = []
    for path in (*(ROOT / "metalearn").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\0".join(" ".join(re.sub(r"(\.\.\.)+", "...", text).split()) for text in texts)


MESSAGES = [
    (" ".join(block.text.split()), block.words[1:])
    for page in PAGES
    for block in blocks(page)
    if block.words[:1] == ["message"]
]


@pytest.mark.parametrize("message", [text for text, _ in MESSAGES])
def test_quoted_messages_are_in_the_source(message):
    """Whole, where one text has all of it; else each part between what is filled in."""
    whole = message.removeprefix("...").removesuffix("...").strip(" ,:;")
    if whole in sources():
        return
    parts = [part.strip(" ,:;") for part in message.split("...") if len(part.strip(" ,:;")) > 2]
    assert parts
    missing = [part for part in parts if part not in sources()]
    assert not missing, missing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "words"),
    [(m, w) for m, w in MESSAGES if w],
    ids=lambda value: value[:40] if isinstance(value, str) else "by command",
)
def test_quoted_messages_are_what_a_command_says(message, words, metalearn):
    assert words[0] == "metalearn"
    code, _, err = metalearn(*words[1:])
    assert code != 0
    pattern = ".*".join(re.escape(part.strip()) for part in message.split("..."))
    assert re.search(pattern, " ".join(err.split())), err


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_code_of_tutorials_is_whole(page):
    """It can be read; all that a command or a block needs is written by a block."""
    written = {block.file for block in blocks(page)}
    assert any(name and name.endswith("__init__.py") for name in written)
    for block in blocks(page):
        if block.language == "python":
            assert block.file, "code that nobody runs"
            ast.parse(block.text)
        elif block.file:
            assert OmegaConf.create(block.text)
    script = "".join(block.text for block in blocks(page) if block.words == ["run"])
    assert set(re.findall(r"\b(?:test_)?\w+\.py\b", script)) <= written


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any("run" in b.words for b in blocks(page))],
    ids=lambda page: page.stem,
)
def test_code_runs(page, tmp_path):
    """A page's files and commands, in order, as a user's in an empty folder outside the checkout."""
    script = ["set -e"]
    for block in blocks(page):
        if block.file:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.words == ["run"]:
            shown = shlex.quote(block.text)
            script.append(f"python -c {shown}" if block.language == "python" else block.text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {key: value for key, value in environment.items() if not key.startswith("PYTEST")}
    environment["WANDB_MODE"] = "disabled"  # its service takes seconds to start
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
