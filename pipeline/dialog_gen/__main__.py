"""`python -m dialog_gen`: the command line `dialog-gen`."""

from dialog_gen.cli.app import main

if __name__ == "__main__":
    main()
