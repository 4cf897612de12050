"""`python -m numpygpt` is the command `numpygpt`."""

import sys

from numpygpt.cli import main

sys.exit(main())
