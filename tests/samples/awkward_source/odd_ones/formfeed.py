"""Pages, as old editors made them."""

A = 1



B = 2
