"""The documentation: the site builds strictly, links resolve, tables stay narrow."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastervit_jax
import fastervit_jax.data

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))
TEXTS = [Path("README.md"), Path("CONTRIBUTING.md"), Path("CHANGELOG.md"), *PAGES]

sys.path.insert(0, str(ROOT / "docs" / "hooks"))
generated = importlib.import_module("generated")


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_tables_have_at_most_six_columns(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) <= 7 for row in rows), page
    for table in generated.TABLES.values() if page.name == "benchmarks.md" else ():
        assert "\n".join(table().splitlines()[1:2]).count("-|") <= 6  # some are one sentence


def _rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def test_every_config_key_has_a_meaning():
    from fastervit_jax.runs.config import by_dotted_key, default_config

    keys = generated.config_keys(generated.CONFIG.read_text())
    assert sorted(key.name for key in keys) == sorted(by_dotted_key(default_config().to_dict()))


def test_a_key_without_a_comment_fails():
    source = "def default_config():\n    config.seed = 0  # of all\n    config.flip = 0.5\n"
    with pytest.raises(ValueError, match=r"config\.flip has no comment"):
        generated.config_keys(source)


def test_a_flag_without_help_fails():
    assert "| `--top` | Classes. |" in generated.command_reference(
        "A.\n\nFlags:\n  --top\n   Classes."
    )
    with pytest.raises(ValueError, match="--top has no help text"):
        generated.command_reference("A.\n\nFlags:\n  --top\n")


def test_every_public_name_has_a_reference():
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    for package in (fastervit_jax, fastervit_jax.data):
        for name in set(package.__all__) - {"__version__"}:
            assert f"::: {package.__name__}.{name}\n" in page


def test_cited_sections_exist():
    page = (ROOT / "docs" / "reference" / "numbers.md").read_text()
    sections = set(re.findall(r"^## (\d+)\. ", page, flags=re.MULTILINE))
    sources = [*ROOT.glob("fastervit_jax/**/*.py"), *ROOT.glob("tests/**/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    cited = re.findall(r"numbers\.md,\s+(?:# )?section (\d+)", text)
    assert cited and set(cited) <= sections


def test_troubleshooting_quotes_messages_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r'"([^"]+)"', "\n".join(row.split("|")[1] for row in _rows(page)))
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("fastervit_jax/**/*.py")]
    texts = [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    parts = [part.strip() for message in quoted for part in message.split("…") if part.strip()]
    assert parts and [part for part in parts if not any(part in text for text in texts)] == []


@pytest.mark.skipif(not importlib.util.find_spec("mkdocstrings"), reason="needs mkdocs")
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    config = (tmp_path / "reference" / "config" / "index.html").read_text()
    assert "optimizer.learning_rate" in config
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    assert "--compile_for" in commands and "--dataset" in commands
    api = (tmp_path / "reference" / "api" / "index.html").read_text()
    assert "Builds a FasterViT, ready for inference." in api
    assert "Keep a Changelog" in (tmp_path / "whats-new" / "index.html").read_text()
