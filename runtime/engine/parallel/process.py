"""The process of a rank that follows: `python -m runtime.engine.parallel.process FD NAME`.

It ends when the other end of the socket FD is closed, whatever it is doing, so that no rank outlives its leader.
NAME is what its log calls it.
"""

import os
import select
import socket
import sys
import threading

from runtime.telemetry import log_to_stderr


def end_with(leader: socket.socket) -> None:
    """From now on this process ends when the other end is closed: by its process, or by the kernel when that died."""

    def wait() -> None:
        poll = select.poll()
        poll.register(leader, select.POLLRDHUP)
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="leader", daemon=True).start()


def main() -> None:
    leader = socket.socket(fileno=int(sys.argv[1]))
    end_with(leader)
    log_to_stderr(sys.argv[2])
    # Takes seconds, during which the leader may die.
    from runtime.engine.parallel.channel import Channel
    from runtime.engine.parallel.follower import follow

    follow(Channel(leader))
    sys.stderr.flush()
    # Threads of torch may still wait for a rank that is gone.
    os._exit(1)


if __name__ == "__main__":
    main()
