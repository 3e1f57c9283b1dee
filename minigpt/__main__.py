"""`python -m minigpt COMMAND`: the same as the installed command `minigpt COMMAND`."""

import sys

from minigpt.commands import main

if __name__ == "__main__":
    sys.exit(main())
