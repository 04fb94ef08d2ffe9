"""The program: set up Ctrl-C before the import of the command line, which takes most of a second."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; during its import, Ctrl-C ends the program at once, because nothing has started yet."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from exatrkx_hpc import cli

    cli.main()


if __name__ == "__main__":
    main()
