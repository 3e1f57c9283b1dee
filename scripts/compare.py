"""python scripts/compare.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a clone works without being installed

from minigpt.commands import compare, run

if __name__ == "__main__":
    sys.exit(run(compare))
