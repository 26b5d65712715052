"""Documentation that runs: python blocks are executed, quoted code stands in the file it is quoted from, links lead
somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])

QUOTE = re.compile(r"<!-- from (\S+) -->\n```python\n(.*?)```", re.S)
BLOCK = re.compile(r"(?<!-->\n)```python\n(.*?)```", re.S)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

quotes = [(page, *found) for page in PAGES for found in QUOTE.findall(page.read_text())]


@pytest.mark.parametrize(("page", "file", "code"), quotes, ids=[f"{p.name}-{i}" for i, (p, *_) in enumerate(quotes)])
def test_quoted_code_is_the_code(page, file, code):
    assert code in (ROOT / file).read_text(), f"{page.name} quotes what {file} no longer says"


def test_the_textbook_quotes_all_four_terms_and_the_objective():
    assert sum(page.name == "textbook.md" for page, *_ in quotes) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "textbook.md"], ids=lambda p: p.name)
def test_examples_run(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
