"""Strings that look like something else: {{ name }} {% if x %} {# gone #}."""

JINJA = "{{ kernel.title }} {%- raw -%} {# comment #} {{"
TRIPLE = '''""" inside, and \'\'\' too'''
BACKSLASHES = r"\d+\n\\" + "\\n" + "\N{BULLET}"
MAGIC = """
%%writefile other.py
%matplotlib inline
!rm -rf nothing
?help
what?
>>> 1 + 1
... 2
In [3]: 4
"""
BLANKS = """first
    
	
last"""
TABS = "a	b"
CONTROL = "[0m"
SURROGATE = "\ud800"
