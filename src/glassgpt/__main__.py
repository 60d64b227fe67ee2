"""`python -m glassgpt` is `glassgpt`."""

import os
import sys

from glassgpt.cli import main


def run() -> None:
    """Run the command, and exit with its code.

    One of several ranks ends at once. PyTorch's threads go on while Python destroys what they use, and a rank that
    crashes there, after all is saved, would be one that failed: `torchrun` would start it again, and wait for the
    others, which have ended.
    """
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1" and "MASTER_ADDR" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
