"""`python -m dakd`."""

import sys

from dakd.cli import main

sys.exit(main())
