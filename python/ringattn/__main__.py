# SPDX-License-Identifier: Apache-2.0
"""The command line tool of the package: ``ringattn`` or ``python -m ringattn``."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes the tool, with the same arguments."""
    tool = Path(__file__).parent / "bin" / "ringattn"
    os.execv(tool, ["ringattn", *sys.argv[1:]])


if __name__ == "__main__":
    main()
