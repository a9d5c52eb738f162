"""The figures of documents are those of records, and the records are of the models that are shipped."""

import functools
import json
import pathlib
import re
from collections.abc import Iterator

import pytest

from conformer import record

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = sorted((ROOT / "results").rglob("*.json"))
PAGES = [
    path for folder in (".", "configs", "docs", "kernels", "models") for path in sorted((ROOT / folder).glob("*.md"))
]
DOCUMENTS = [path for path in PAGES if path.name != "results.md"]  # which is made from the records
UNITS = (1, 100, 1e3, 1e6, 1e9, 1e-3, 1e-6, 1e-9, 2**-10, 2**-20, 1 / 60)  # percent, ms, us, thousands, MiB, minutes


@functools.cache
def numbers_of(path: pathlib.Path) -> tuple[float, ...]:
    """Every number of a record."""

    def walk(node) -> Iterator[float]:
        if isinstance(node, dict | list):
            for value in node.values() if isinstance(node, dict) else node:
                yield from walk(value)
        elif isinstance(node, int | float) and not isinstance(node, bool):
            yield float(node)

    return tuple(walk(json.loads(path.read_text())))


def says(numbers: set[float], figure: str) -> bool:
    """Returns whether one of the numbers, in some unit, is rounded to the figure."""
    value, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    half = 0.5001 * 10**-digits
    return any(abs(number * unit - value) <= half for number in numbers for unit in UNITS)


def sections(text: str) -> Iterator[tuple[str, list[pathlib.Path], list[str]]]:
    """Headings, the records that are named below each, and the decimal figures there, less those of commands."""
    for section in filter(None, re.split(r"(?m)^(?=#+ )", text)):
        named = {path for name in re.findall(r"results/[\w*/]+\.json", section) for path in ROOT.glob(name)}
        prose = re.sub(r"(?s)```.*?```|`[^`]*`", "", section)
        yield section.splitlines()[0], sorted(named), re.findall(r"(?<![\w.,-])\d[\d,]*\.\d+(?![\w.])", prose)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_figure_beside_a_record_is_in_it(document):
    wrong = {}
    for heading, named, figures in sections(document.read_text()):
        numbers = {number for path in named for number in numbers_of(path)}
        if named and (missing := [figure for figure in figures if not says(numbers, figure)]):
            wrong[heading] = missing
    assert not wrong, f"{document.name} says what no record says that is named in the same section: {wrong}"


def test_a_figure_that_no_record_says_is_found():
    assert says({0.23125}, "23.1") and says({0.0121}, "12.1") and says({3 * 2**20}, "3.0")
    assert not says({0.23125}, "23.2") and not says({5.0}, "4.2")


def test_links_and_named_documents_exist():
    for page in PAGES:
        text = page.read_text()
        targets = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
        targets += [ROOT / name for name in re.findall(r"`(docs/[\w.]+|configs/[\w/]+\.py|results/[\w/]+\.json)", text)]
        assert not (missing := [str(target) for target in targets if not target.exists()]), f"{page.name}: {missing}"


def test_records_are_of_the_models_that_are_shipped():
    measured = set()
    for path in RECORDS:
        found = json.loads(path.read_text())
        assert found["commit"] and isinstance(found["models"], dict), f"{path.name}: make it anew"
        for command in [found["command"], *found.get("commands", {}).values()]:
            for folder in re.findall(r"models/\w+", command):
                named = f"{path.name} names {folder}"
                assert folder in found["models"] or "--text" in command, f"{named}, and not its weights: make it anew"
        for folder, weights in found["models"].items():
            assert record.hash_of(ROOT / folder / "weights.npz") == weights, f"{path.name}: {folder} has other weights"
            measured.add(folder)
    assert measured == {f"models/{path.parent.name}" for path in (ROOT / "models").glob("*/weights.npz")}
