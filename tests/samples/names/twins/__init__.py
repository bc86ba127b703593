"""Names that would collide in a single flat script."""

from .left import *
from .right import *

_hidden = "of the package"
