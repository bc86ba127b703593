"""What the shapes reckon with."""

UNIT = 1
