"""How much the tests run: reduced numbers in `make test`, the stated ones in `make test-full`."""

import os
from typing import TypeVar

Scale = TypeVar("Scale")
FULL = os.environ.get("BATON_TEST_FULL") == "1"


def scaled(reduced: Scale, full: Scale) -> Scale:
    """A count of seeds, requests or examples, or the examples themselves."""
    return full if FULL else reduced
