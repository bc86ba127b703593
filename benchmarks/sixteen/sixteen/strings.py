"""Strings that a template, a magic or a tool that works by lines would change."""

TEXT = """{{ not.a.template }} {% raw %} {# no comment #} $name {0} %s
   
	a tab, 'quotes', \"\"\"three\"\"\", a back\\slash, \N{SNOWMAN}, é 漢 🙂, two lines
%%writefile elsewhere.py
!ls
</script> trailing spaces   
"""  # noqa: RUF001, W291, W293
