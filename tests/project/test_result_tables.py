"""docs/result_tables.py: the tables of README and docs are those of the committed records."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def script():
    path = ROOT / "docs" / "result_tables.py"
    spec = importlib.util.spec_from_file_location("result_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_every_table_is_that_of_the_records(script, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert script.refreshed(text) == text


def test_every_table_is_shown_once(script):
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in script.PAGES]
    shown = [found["name"] for page in pages for found in script.MARKED.finditer(page)]
    assert sorted(shown) == sorted(script.TABLES)


def test_a_changed_number_is_replaced_and_the_text_around_it_stays(script):
    table = script.TABLES["complexity"]()
    assert "| roi_vbr |" in table
    page = f"Before.\n\n<!-- table: complexity -->\n{table}\n\nAfter: | no table |\n"
    assert script.refreshed(page.replace("| roi_vbr | ", "| roi_vbr | 9")) == page
    assert script.refreshed(page.replace(f"{table}\n", "")) == page
    with pytest.raises(KeyError, match="nothing"):
        script.refreshed("<!-- table: nothing -->\n")
