"""jinja2: generated code, a package loader, lazy imports."""

import jinja2
import pytest
from jinja2.sandbox import SandboxedEnvironment


def test_templates_that_inherit() -> None:
    loader = jinja2.DictLoader(
        {
            "base": "<{% block body %}{% endblock %}>",
            "leaf": "{% extends 'base' %}{% block body %}{{ 3 | string * 2 }}{% endblock %}",
        }
    )
    assert jinja2.Environment(loader=loader).get_template("leaf").render() == "<33>"


def test_an_error_names_the_template_line() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError) as raised:
        jinja2.Template("one\n{% if %}")
    assert raised.value.lineno == 2


def test_strict_undefined_rejects_unknown_names() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'x' is undefined"):
        jinja2.Template("{{ x }}", undefined=jinja2.StrictUndefined).render()


def test_the_sandbox_blocks_private_attributes() -> None:
    with pytest.raises(jinja2.exceptions.SecurityError):
        SandboxedEnvironment().from_string("{{ ().__class__.__base__.__subclasses__() }}").render()


def test_filters_and_loops() -> None:
    text = "{% for n in numbers | sort(reverse=true) %}{{ loop.index }}{{ n }} {% endfor %}"
    assert jinja2.Template(text).render(numbers=[1, 3]) == "13 21 "
