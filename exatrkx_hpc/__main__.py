"""The program: what comes before its import, which takes most of a second."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; until it can unwind, Ctrl-C just ends the program: nothing has begun yet."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from exatrkx_hpc import cli

    cli.main()


if __name__ == "__main__":
    main()
