"""Documentation that runs: python blocks are executed, quoted code stands in the file it is quoted from, links lead
somewhere."""

import re
from pathlib import Path

import pytest

import fewfire as ff
from fewfire import comparison, runs
from fewfire.probing import MEANINGS
from fewfire.report import METRICS

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


NAMED = [*METRICS, "size", *MEANINGS, *comparison.MEANINGS, "psnr", "ssim", "score", "is_anomaly"]


@pytest.mark.parametrize("name", NAMED)
def test_every_number_has_its_formula(name):
    assert f"| `{name}`" in (ROOT / "docs" / "metrics.md").read_text()


def test_the_configuration_in_the_readme_is_a_good_one(tmp_path, recwarn):
    """It explained 2.4 % of the variance."""
    (tmp_path / "c.yaml").write_text(re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1])
    config = runs.load_config(tmp_path / "c.yaml", ["train.threads=1"], path="digits")
    trainer = runs.make_trainer(config, ff.digits(), progress=False)
    trainer.fit()
    assert not list(recwarn)
    assert trainer.summary["explained_variance"] > 0.85
    assert trainer.summary["mean_activation"] < 0.1
