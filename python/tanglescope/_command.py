"""The command `tanglescope`, as the wheel brings it."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Runs the command line, and ends the process with its exit code."""
    from . import _native

    # Ctrl-C ends the process, as it does the program that is built from source; what is written stays valid
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_native.run_command(["tanglescope", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
