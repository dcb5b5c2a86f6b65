"""`python -m iiot`."""

from iiot.cli import main

if __name__ == "__main__":
    main()
