"""nbformat: JSON schemas next to the code, one package per version of the format."""

import nbformat
import pytest
from nbformat import v4


def test_a_notebook_survives_a_round_trip() -> None:
    notebook = v4.new_notebook(cells=[v4.new_code_cell("1 + 1"), v4.new_markdown_cell("*hi*")])
    assert nbformat.reads(nbformat.writes(notebook), as_version=4) == notebook


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_each_version_has_its_schema(version: int) -> None:
    schema = nbformat.validator.get_validator(version, 0 if version == 4 else None)
    assert (schema is not None) == (version >= 3)


def test_an_invalid_notebook_is_rejected() -> None:
    notebook = v4.new_notebook(cells=[v4.new_code_cell("1")])
    del notebook.cells[0]["outputs"]
    with pytest.raises(nbformat.ValidationError, match="outputs"):
        nbformat.validate(notebook)


def test_an_old_notebook_is_upgraded() -> None:
    old = '{"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": []}'
    assert nbformat.reads(old, as_version=4).nbformat == 4
