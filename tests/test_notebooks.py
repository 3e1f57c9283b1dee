"""The notebooks, which are committed as they ran, in French and in English with the same code.

Run all cells of both and save them whenever one is changed, then clear what an editor adds to their metadata.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FRENCH, ENGLISH = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("apres_l_article", "after_the_article"))
BOTH = pytest.mark.parametrize("path", [FRENCH, ENGLISH], ids=lambda path: path.stem)
# A path from the root of a file system, where a link's address or a division has none.
ABSOLUTE = re.compile(r"(?<![\w./:<])/\w[\w.-]*/|\b[A-Z]:\\|\bfile://")
BAR = re.compile(r"[\r\b\x1b]")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def cells(book: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == kind]


def outputs(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in cells(book, "code") for output in cell.outputs]


def printed(book: nbformat.NotebookNode) -> str:
    """Everything that the cells gave as text."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(book))


def kinds(book: nbformat.NotebookNode) -> list[list[tuple[str, ...]]]:
    """What each code cell gave: streams by name, results by type. A stream may come in several parts."""
    return [
        sorted({(each.output_type, each.get("name", ""), *sorted(each.get("data", {}))) for each in cell.outputs})
        for cell in cells(book, "code")
    ]


class Blank(ast.NodeTransformer):
    """Empties the strings of a program."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node


def program(cell: nbformat.NotebookNode) -> str:
    """The code of a cell without comments and without what its strings say."""
    source = TransformerManager().transform_cell(cell.source)
    return ast.dump(Blank().visit(ast.parse(source)))


@pytest.mark.full
@BOTH
def test_it_runs_in_a_fresh_kernel_and_gives_what_is_committed(path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    committed, book = read(path), read(path)
    for cell in cells(book, "code"):
        cell.outputs = []
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    assert kinds(book) == kinds(committed)


@BOTH
def test_it_is_committed_as_it_ran_from_the_first_cell_to_the_last(path):
    book = read(path)
    nbformat.validate(book)
    code = cells(book, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs(book)} == {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs(book) if output.output_type == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs(book)) == 3
    assert "Traceback" not in printed(book)
    assert not BAR.search(printed(book))


@BOTH
def test_it_names_no_folder_of_a_machine_and_no_time(path):
    book = read(path)
    for text in (printed(book), *(cell.source for cell in book.cells)):
        assert not ABSOLUTE.search(text)
    assert book.metadata.kernelspec.name == "python3"
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert all(cell.metadata == {} for cell in book.cells)


@BOTH
def test_every_figure_of_its_text_is_one_that_it_printed_or_set(path):
    book = read(path)
    known = printed(book) + "".join(cell.source for cell in cells(book, "code"))
    known = set(re.findall(r"\d+(?:\.\d+)?", known))
    text = " ".join(re.sub(r"`.*?`|\]\(.*?\)", "", cell.source) for cell in cells(book, "markdown"))
    stated = {number.replace(",", ".") for number in re.findall(r"\d+(?:[.,]\d+)?", text)}
    assert "3.97" in stated  # ln V
    assert stated <= known


@BOTH
def test_its_links_lead_to_files(path):
    links = [link for cell in cells(read(path), "markdown") for link in re.findall(r"\]\((.*?)\)", cell.source)]
    assert len(links) >= 3
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_both_have_the_same_cells_but_for_words():
    french, english = read(FRENCH), read(ENGLISH)
    assert [cell.cell_type for cell in french.cells] == [cell.cell_type for cell in english.cells]
    assert [program(cell) for cell in cells(french, "code")] == [program(cell) for cell in cells(english, "code")]
    assert kinds(french) == kinds(english)
