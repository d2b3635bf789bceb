"""`dakd ablate` as a script: a table of experiments beside the paper's numbers."""

import sys

from dakd.ablate.command import main

if __name__ == "__main__":
    sys.exit(main())
