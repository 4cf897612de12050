"""`python -m torchgpt`, and what torchrun starts: `torchrun --nproc-per-node 8 -m torchgpt train`."""

import sys

from torchgpt.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
