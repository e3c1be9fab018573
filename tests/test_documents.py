"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

import fastsep

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path for folder in (".", "benchmarks", "csrc", "docs") for path in (ROOT / folder).glob("*.md")
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    here = [link for link in links if not link.startswith("https://")]
    assert [link for link in here if not (path.parent / link).exists()] == []
    quoted = re.findall(r"`((?:fastsep|asc|csrc|benchmarks|tests)/[\w/.-]*\w)`", path.read_text())
    assert [name for name in quoted if not (ROOT / name).exists()] == []


def rooms() -> list[str]:
    """The paths of CONTRIBUTING's tree, whose files may go without their ".py"."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text.partition("## The rooms\n\n")[2].partition("\n\n")[0]
    found, house = [], ""
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        if depth > 1:
            continue  # a description goes on
        for name in re.split(r"\s{2,}", line.strip())[0].split(", "):
            if depth == 0:
                house = name
            path = name if depth == 0 else house + name
            found.append(path if path.endswith(("/", ".py")) else f"{path}.py")
    return found


def test_the_tree_is_the_repository() -> None:
    paths = rooms()
    assert {"fastsep/reference.py", "csrc/ops/", "asc/losses.py", "benchmarks/"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [fastsep.__version__]


def test_the_citation_names_the_report() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what 1.2.0 requires
    (report,) = citation["references"]
    assert [author["family-names"] for author in report["authors"]] == ["Puy", "Jain", "Bursuc"]
    assert {"type", "title"} <= set(report) and report["year"] == 2021
    assert report["title"].lower() in (ROOT / "README.md").read_text().replace("\n", " ").lower()


def test_the_changelog_starts_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
