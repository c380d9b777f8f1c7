"""``python -m fastsmtp`` is the ``fastsmtp`` command."""

import sys

from fastsmtp.cli import main

sys.exit(main())
