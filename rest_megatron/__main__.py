"""`python -m rest_megatron`."""

import sys

from rest_megatron.cli import main

if __name__ == "__main__":
    sys.exit(main())
