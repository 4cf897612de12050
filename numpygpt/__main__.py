"""`python -m numpygpt` is the command `numpygpt`."""

import sys

from numpygpt.commands.main import main

sys.exit(main())
