"""`python -m promptcdm` is the command `promptcdm`."""

from promptcdm.cli import main

if __name__ == "__main__":
    main()
