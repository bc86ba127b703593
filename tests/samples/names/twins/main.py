"""Uses the two modules by their dotted names."""

import twins.left as left
import twins.right


def run() -> tuple[str, str]:
    return left.helper(), twins.right.helper()
