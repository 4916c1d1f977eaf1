"""The Markdown files: their Python runs, their links and commands exist."""

import pathlib
import re

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md"]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
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
