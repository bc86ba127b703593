"""Indented by tabs."""


def f(n):
	if n:
		return "tab"
	return "	"
