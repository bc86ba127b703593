# -*- coding: latin-1 -*-
"""Not UTF-8."""

NAME = "grüße"
