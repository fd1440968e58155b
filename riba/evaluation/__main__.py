"""``python -m riba.evaluation``."""

from riba.evaluation.command import main

if __name__ == "__main__":
    main()
