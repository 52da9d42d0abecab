"""mkdocs hooks: pages that are generated from the code.

- `reference/config.md` gets a table of all config keys, from the source of `default_config`.
- `reference/commands.md` gets the description and the flags of each command, from its `--help`.
- `whats-new.md` gets the content of CHANGELOG.md.
- `benchmarks.md` and `reliability.md` get their tables from the records (`benchmark_tables.py`).
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_tables import TABLES

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "fastervit_jax" / "runs" / "config.py"


class Key(NamedTuple):
    """A key of the config: its dotted name, its default as source, its meaning from the comment."""

    name: str
    default: str
    meaning: str


def config_keys(source: str) -> list[Key]:
    """The keys that `default_config` sets, in order.

    A key's meaning is the comment on its line, or else the comment lines directly above it.

    Raises:
        ValueError: a key has no meaning.
    """
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "default_config"
    )
    comments, code_lines = _comments(source)
    keys: list[Key] = []

    def add(name: str, value: ast.expr, first: int, last: int) -> None:
        text = comments.get(last, "")
        line = first - 1
        above = []
        while not text and line in comments and line not in code_lines:
            above.insert(0, comments[line])
            line -= 1
        meaning = text or " ".join(above)
        if not meaning:
            raise ValueError(
                f"config.{name} has no comment that says what it means ({CONFIG.name})."
            )
        default = ast.unparse(value)
        keys.append(Key(name, "None" if default.startswith("optional(") else default, meaning))

    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        name, value = node.targets[0].attr, node.value
        if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Dict):
            entries = zip(value.args[0].keys, value.args[0].values, strict=True)
            for key, entry in entries:
                add(f"{name}.{ast.literal_eval(key)}", entry, key.lineno, entry.end_lineno)
        else:
            add(name, value, node.lineno, node.end_lineno)
    return keys


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, and the lines that hold code."""
    comments, code = {}, set()
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
        elif token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    return comments, code


def _config_table() -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key in config_keys(CONFIG.read_text()):
        rows.append(f"| `{key.name}` | `{key.default}` | {key.meaning} |".replace("||", "\\|\\|"))
    return "\n".join(rows)


def _commands() -> str:
    from fastervit_jax.commands.main import COMMANDS

    def help_of(name: str) -> str:
        command = [sys.executable, "-m", "fastervit_jax", name, "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(help_of, COMMANDS))
    links = (f"| [`fastervit {name}`](#fastervit-{name}) | {COMMANDS[name]} |" for name in COMMANDS)
    parts = ["\n".join(["| command | what it is for |", "|---|---|", *links])]
    for name, text in zip(COMMANDS, texts, strict=True):
        parts += [f"## fastervit {name}", command_reference(text)]
    return "\n\n".join(parts)


def command_reference(text: str) -> str:
    """The `--help` of a command as Markdown: its description, and its flags as a table.

    Raises:
        ValueError: a flag has no meaning.
    """
    description, _, flags = text.partition("\nFlags:\n")
    rows = []
    for flag in re.split(r"^  --", flags, flags=re.MULTILINE)[1:]:
        name, *meaning = flag.split()
        if not meaning:
            raise ValueError(f"--{name} has no help text.")
        rows.append(f"| `--{name}` | {_flag_meaning(' '.join(meaning))} |")
    paragraphs = re.split(r"\n\s*\n", description.strip("\n"))
    table = ["| flag | meaning |", "|---|---|", *sorted(rows)]
    return "\n\n".join([*map(_paragraph, paragraphs), "\n".join(table)])


def _flag_meaning(text: str) -> str:
    """A flag's help, with the choices that absl writes as `<a|b>:` put into words."""
    choices, _, rest = text.partition(">: ")
    if text.startswith("<") and rest:
        *others, last = (f"`{choice}`" for choice in choices[1:].split("|"))
        text = f"{', '.join(others)} or {last}. {rest}"
    return _marked(text).replace("|", "\\|")


def _paragraph(text: str) -> str:
    """A paragraph of a description: command lines become a block of code, flags become code."""
    lines = [line.strip() for line in text.splitlines()]
    if all(line.startswith("fastervit ") for line in lines):
        return "\n".join(["```text", *lines, "```"])
    usage = re.fullmatch(r"(.*): (fastervit .*?)\.?", " ".join(lines))
    if usage:
        return f"{_marked(usage[1])}.\n\n```text\n{usage[2]}\n```"
    return _marked(text)


def _marked(text: str) -> str:
    """Flags outside code become code."""
    parts = text.split("`")
    parts[::2] = (re.sub(r"--[a-z_]+(=[\w:./-]*\w)?", r"`\g<0>`", part) for part in parts[::2])
    return "`".join(parts)


_GENERATED = {
    "reference/config.md": _config_table,
    "reference/commands.md": _commands,
    "whats-new.md": lambda: (ROOT / "CHANGELOG.md").read_text().partition("\n")[2],
}


def on_page_markdown(markdown: str, page, **_) -> str:
    """Called by mkdocs for every page: replaces `<!-- generated -->`."""
    make = _GENERATED.get(page.file.src_uri)
    if make:
        return markdown.replace("<!-- generated -->", make())
    for name, table in TABLES.items():
        mark = f"<!-- table: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown
