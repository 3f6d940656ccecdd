"""`python -m dgjax` is the `dgjax` command."""

from dgjax.cli import main

if __name__ == "__main__":
    main()
