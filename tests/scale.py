"""How much the tests run: reduced numbers in `make test`, the stated ones in `make test-full`."""

import os

FULL = os.environ.get("BATON_TEST_FULL") == "1"


def scaled(reduced: int, full: int) -> int:
    """A count of seeds, requests or examples."""
    return full if FULL else reduced
