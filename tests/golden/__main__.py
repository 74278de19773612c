"""`python -m tests.golden`: write every golden file anew from the derivations beside it."""

from tests.golden.files import FILES, write

if __name__ == "__main__":
    for name in FILES:
        write(name)
