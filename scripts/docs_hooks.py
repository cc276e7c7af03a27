"""Hooks of the documentation site (mkdocs.yml): generated pages, links to files outside docs/, formulas as MathML.

README.md is the start page. The pages in reference/ are generated from the parsers of the commands, the YAML files in
configs/, the comments of unskew/config/defaults.py and the public names of the packages.
"""

import argparse
import ast
import contextlib
import html
import importlib
import io
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import yaml

from unskew import config

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {path.name: path.name for path in ROOT.glob("*.md")} | {"README.md": "index.md"}  # pages of the root
GROUPS = {  # the sections of the page of `unskew`, by the packages that define its names
    "debias": "Debias logits",
    "runs": "Train, sweep and read runs",
    "config": "List datasets, backbones and trainers",
    "micro": "Know the true prior",
    "clip": "Use a backbone",
    "data": "Add a dataset",
    "engine": "Add a trainer",
}
PACKAGES = {  # those whose `__init__.py` has public names
    name: f"reference/{'config_module' if name == 'config' else name}.md"
    for name in ("debias", "clip", "data", "engine", "runs", "config")
}
API_INTRODUCTION = """# Python API

`import unskew` gives the names on this page. In shapes, N is the number of images, C of classes, and D the width of a
feature."""
CONFIG_INTRODUCTION = """# Config keys

A key and its value may be anywhere in a command: `unskew train -d digits -t CoOp OPTIM.LR 0.001`.
[How a config is built](../RUNS.md#how-a-config-is-built) names the files that set the keys, in their order. This page
has the defaults and meanings of these files.

## Keys of every run

Scripts that `python -m unskew.dassl` runs have Dassl's defaults, which are in brackets where they differ."""

Row = tuple[str, str, str]  # key, default and meaning


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages of the repository's root and the generated pages."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in OUTSIDE.items()}
    pages |= {"reference/commands.md": commands_page(), "reference/config.md": config_page(), **api_pages()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


# --- links and formulas -----------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Let links work that are relative to the repository, as on GitHub.

    A file outside docs/ is copied into the site. A link to a folder becomes plain text. The name of a page replaces the
    name of its file.
    """
    from mkdocs.structure.files import File

    path = page.file.src_uri
    if path.startswith("reference/"):
        return markdown

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("" if path in OUTSIDE.values() else "docs", match["target"]))
        if (ROOT / target).is_dir():
            return match["text"]
        if not (ROOT / target).is_file():
            return match[0]
        uri = OUTSIDE.get(target) or target.removeprefix("docs/")
        file = files.get_file_from_path(uri)
        if file is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        text = match["text"]
        if file and file.page and text.endswith(".md"):  # "GLA.md" becomes the page's name in the navigation
            text = file.page.title
        return f"[{text}]({uri}{match['anchor'] or ''})"

    return re.sub(r"\[(?P<text>[^\]]*)\]\((?P<target>[\w./-]+)(?P<anchor>#[^)]*)?\)", replace, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas, ```` ```math ```` and ``$`...`$`` as on GitHub, into MathML."""
    html = re.sub(
        r'<pre class="math"><code>(.*?)</code></pre>', lambda match: _math(match[1], "block"), html, flags=re.DOTALL
    )
    return re.sub(r"\$<code>(.*?)</code>\$", lambda match: _math(match[1], "inline"), html)


def _math(latex: str, display: str) -> str:
    from latex2mathml.converter import convert

    # The converter has no space behind the name of a function.
    return convert(html.unescape(latex), display=display).replace(
        "<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>'
    )


# --- commands ---------------------------------------------------------------------------------------


def commands_page() -> str:
    """Return the page with the help of every command."""
    from unskew.cli.main import build_parser
    from unskew.dassl.__main__ import main as run_script

    parts = ["# Commands\n\n`python train.py` takes the flags of `unskew train`, which has those of CoOp's script."]
    out = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "84", "NO_COLOR": "1"}):  # the format of argparse
        parts += [_command(*described) for described in _parsers(build_parser(), "")]
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            run_script(["--help"])
    parts.append(f"## python -m unskew.dassl\n\n```text\n{out.getvalue()}```")
    return "\n\n".join(parts)


def _parsers(parser: argparse.ArgumentParser, summary: str) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield a parser and those of its commands, each with the summary of its command."""
    yield parser, summary
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield from _parsers(command, summaries.get(name, ""))


def _command(parser: argparse.ArgumentParser, summary: str) -> str:
    summary = f"{summary[:1].upper()}{summary[1:]}.\n\n" if summary else ""
    return f"## {parser.prog}\n\n{summary}```text\n{parser.format_help()}```"


# --- config keys ------------------------------------------------------------------------------------


def config_page() -> str:
    """Return the page with every config key, its default and its meaning, and the YAML files."""
    meanings = {key: text for path in _yamls("trainers") for key, text in yaml_meanings(path).items()}
    meanings |= default_meanings()
    common, groups = dict(config.flatten(config.COMMON)), dict[str, list[Row]]()
    for key, value in config.flatten(config.get_cfg_default()):
        default = _code(common.get(key, value))
        if common.get(key, value) != value:
            default += f" ({_code(value)})"
        groups.setdefault(key.rpartition(".")[0].partition(".")[0], []).append((key, default, meanings.get(key, "")))
    parts = [CONFIG_INTRODUCTION, *(f"### {name or 'Run'}\n\n{_table(rows)}" for name, rows in groups.items())]
    parts.append("## Keys of the trainers")
    for path in _yamls("trainers"):
        values, texts = config.flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {}), yaml_meanings(path)
        rows = [(key, _code(value), texts.get(key) or meanings.get(key, "")) for key, value in values]
        rows = [row for row in rows if row[0].startswith("TRAINER.")]
        parts += [f"### {path.stem}", _table(rows) if rows else "This trainer has no keys.", _listing(path)]
    for folder in ("datasets", "backbones"):
        parts += [f"## Settings of the {folder}", *map(_listing, _yamls(folder))]
    return "\n\n".join(parts)


def default_meanings() -> dict[str, str]:
    """Return the comments of the keys in unskew/config/defaults.py: calls such as ``INPUT=_node(SIZE=...)``."""
    source = (ROOT / "unskew" / "config" / "defaults.py").read_text(encoding="utf-8")
    lines = source.splitlines()

    def comments(call: ast.Call, prefix: str) -> Iterator[tuple[str, str]]:
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Call):
                yield from comments(keyword.value, f"{prefix}{keyword.arg}.")
            else:
                yield f"{prefix}{keyword.arg}", _comment(lines, keyword.lineno, keyword.value.end_lineno or 0)

    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    (tree,) = (node.value for node in ast.walk(functions["_default_tree"]) if isinstance(node, ast.Return))
    return dict(comments(tree, "")) if isinstance(tree, ast.Call) else {}


def yaml_meanings(path: Path) -> dict[str, str]:
    """Return the comments of the keys in a YAML file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    def comments(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode):
                yield from comments(value, f"{prefix}{key.value}.")
            elif key.value != "SCHEDULES":
                yield f"{prefix}{key.value}", _comment(lines, key.start_mark.line + 1, value.end_mark.line + 1)

    tree = yaml.compose(text)
    return {key: comment for key, comment in comments(tree, "") if comment} if tree else {}


def _comment(lines: list[str], first: int, last: int) -> str:
    """Return the comment of the lines ``first`` to ``last`` (from 1): at their end, or the lines above them."""
    if match := re.search(r"  # (.+)$", lines[last - 1]):
        return match[1]
    above = []
    while first > 1 and (match := re.match(r"\s*# (.+)$", lines[first - 2])):
        above.insert(0, match[1])
        first -= 1
    return " ".join(above)


def _yamls(folder: str) -> list[Path]:
    return sorted((ROOT / "configs" / folder).glob("*.yaml"), key=lambda path: path.stem.lower())


def _code(value: object) -> str:
    text = repr(value) if value == "" or not isinstance(value, str) else value
    return f"`{text}`"


def _table(rows: list[Row]) -> str:
    lines = [f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |" for key, default, meaning in rows]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *lines])


def _listing(path: Path) -> str:
    """Return a YAML file in a box that opens at a click."""
    text = path.read_text(encoding="utf-8").rstrip().replace("\n", "\n    ")
    return f'??? note "{path.relative_to(ROOT).as_posix()}"\n\n    ```yaml\n    {text}\n    ```'


# --- Python API -------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """Return a page for `unskew` and one for each package with public names; each name is on the first page only."""
    import unskew

    groups: dict[str, list[str]] = {package: [] for package in GROUPS}
    for name in unskew.__all__:
        groups[definition(unskew, name).split(".")[1]].append(name)
    parts = [API_INTRODUCTION]
    for package, title in GROUPS.items():
        names = sorted(groups[package], key=str.lower)
        parts += [f"## {title}", *(f"::: unskew.{name}\n    options:\n      heading_level: 3" for name in names)]
    pages = {"reference/unskew.md": "\n\n".join(parts)}
    at_the_top = {id(getattr(unskew, name)): name for name in unskew.__all__}
    for package, path in PACKAGES.items():
        module = importlib.import_module(f"unskew.{package}")
        tops = [at_the_top.get(id(getattr(module, name))) for name in module.__all__]
        links = ", ".join(f"[`{top}`](unskew.md#unskew.{top})" for top in tops if top)
        parts = [f"# unskew.{package}", (module.__doc__ or "").strip()]
        parts += [f"`unskew` has these names too: {links}."] if links else []
        parts += [f"::: {definition(module, name)}" for name, top in zip(module.__all__, tops, strict=True) if not top]
        pages[path] = "\n\n".join(parts)
    return pages


def definition(package: ModuleType, name: str) -> str:
    """Return a public name of a package with the module that defines it, such as `unskew.debias.gla.GLA`."""
    value = getattr(package, name)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    for path, module in sorted(sys.modules.items()):
        if path.startswith("unskew.") and vars(module).get(name) is value:
            source = Path(module.__file__ or "").read_text(encoding="utf-8")
            if re.search(rf"^{name}\b.*=", source, re.MULTILINE):
                return f"{path}.{name}"
    raise ValueError(f"no module defines {package.__name__}.{name}")
