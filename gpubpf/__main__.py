"""`python -m gpubpf` is `gpubpf`."""

import sys

from gpubpf.cli import main

if __name__ == "__main__":
    sys.exit(main())
