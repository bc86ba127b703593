"""Names that a single flat script would mix up."""

from .left import *
from .right import *

_hidden = "of the package"
