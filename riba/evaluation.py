"""The evaluation from a shell: ``python -m riba.evaluation --help``."""

from riba.compare.evaluation import *  # noqa: F403
from riba.compare.evaluation import main

if __name__ == "__main__":
    main()
