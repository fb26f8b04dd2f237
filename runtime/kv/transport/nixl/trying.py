"""Whether a backend of NIXL starts here: `python -m runtime.kv.transport.nixl.trying UCX`, in a process of its own.

Prints the kinds of memory that it writes from and into, and else says why not and fails.
"""

import sys

from runtime.errors import Unavailable
from runtime.kv.transport.nixl.library import library


def main() -> None:
    backend = sys.argv[1]
    try:
        agent = library().agent("trying", backend)
    except Unavailable as error:
        sys.exit(error.message)
    sys.stdout.write(", ".join(str(kind) for kind in agent.get_backend_mem_types(backend)) + "\n")


if __name__ == "__main__":
    main()
