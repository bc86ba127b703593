"""Does not end in a newline."""

LAST = "here"