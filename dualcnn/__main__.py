"""`python -m dualcnn` is the command `dualcnn`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
