"""Runs this machine's pip as if it were in Kaggle's image; started as a program of its own.

    python -I -S pip_for_image.py SETTINGS PIP-ARGUMENTS…

pip can choose wheels for another platform and Python (`--platform`, `--python-version`), but it
evaluates environment markers for the interpreter that runs it, and it looks for installed packages
next to itself. SETTINGS is a JSON object: `path` are folders to import from, namely pip's own and
the one that describes what the image has; `markers` are the values of environment markers there.

Nothing is built: a requirement that is no wheel is an error, also where pip would make one of it.
"""

import json
import sys


def main() -> int:
    """Run pip; the exit code is pip's."""
    settings = json.loads(sys.argv[1])
    sys.path[:0] = settings["path"]
    from pip._internal import distributions
    from pip._internal.cli import cmdoptions
    from pip._internal.cli.main import main as run_pip
    from pip._internal.distributions.sdist import SourceDistribution
    from pip._internal.exceptions import InstallationError
    from pip._vendor.packaging import markers

    of_this_machine = markers.default_environment
    wanted = settings["markers"]

    def default_environment() -> dict[str, str]:
        return {**of_this_machine(), **wanted}

    class NotBuilt(SourceDistribution):
        def prepare_distribution_metadata(self, *_: object, **__: object) -> None:
            raise InstallationError(f"{self.req} is not a wheel, and nothing is built here")

    markers.default_environment = default_environment
    if any(markers.Marker(f'{name} != "{value}"').evaluate() for name, value in wanted.items()):
        print("ERROR: this version of pip does not evaluate markers for the image")
        return 1
    vars(distributions)["SourceDistribution"] = NotBuilt
    # pip 23.2 refuses `--platform` with `--dry-run`, although it then installs nothing.
    cmdoptions.check_dist_restriction = lambda *_, **__: None
    return run_pip(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
