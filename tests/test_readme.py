"""The Markdown files: their Python runs, their links and commands exist."""

import pathlib
import re

import keras
import pytest

from tests import count_lines

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md"]
KOREAN = ROOT / "README.ko.md"


def blocks(page):
    """The Python blocks of a page, joined: later ones build on earlier ones."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = keras.Model.fit

    def short_fit(self, data, *args, **kwargs):
        """The page's own call, on two steps of its data."""
        return fit(self, data.take(2), *args, **{**kwargs, "epochs": 1, "verbose": 0})

    monkeypatch.setattr(keras.Model, "fit", short_fit)
    exec(compile(blocks(page), page.name, "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("page", [*PAGES, KOREAN], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_readme_names_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)|`make (\w+)`", readme, re.M))
    named = {name for pair in named for name in pair if name}
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{name}:", makefile, re.M) for name in named)


def test_korean_page_has_the_commands_of_the_english_one():
    english, korean = (
        [block.strip() for block in re.findall(r"```\w*\n(.*?)```", page.read_text("utf-8"), re.S)]
        for page in (PAGES[0], KOREAN)
    )
    assert len(korean) >= 4
    assert [block for block in korean if block not in english] == []


def test_zoo_is_counted_as_it_says():
    """Every algorithm takes at most 0.4 of the lines of the public example."""
    text = PAGES[1].read_text(encoding="utf-8")
    for name, (path, symbol, public) in count_lines.ALGORITHMS.items():
        here = count_lines.lines(path, symbol)
        assert public is None or here <= 0.4 * public
        [row] = re.findall(rf"^\| {re.escape(name)} \|.*$", text, re.M)
        _, paper, shown, shown_public, *_ = [cell.strip() for cell in row.strip("|").split("|")]
        assert "http" in paper
        assert (shown, shown_public) == (str(here), "" if public is None else str(public))


def test_lines_of_code_are_counted_without_comments_and_docstrings():
    source = '''class A:
    """A docstring
    of two lines."""

    def __init__(self):
        """One more."""
        self.x = 1  # counted

        # not counted
        self.y = [
            2,
        ]
        self.z = """counted,
            both"""
'''
    assert count_lines.code_lines(source, 1, 15) == 8
