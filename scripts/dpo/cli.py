"""How every program of the workflow ends: quietly, or with one message that a person can act on."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The text says what is wrong, where, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a program's `main`; print a `UserError` as one message without a traceback and exit with 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
