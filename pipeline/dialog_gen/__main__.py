"""`python -m dialog_gen COMMAND`, the same as `dialog-gen COMMAND`."""

from dialog_gen.cli.app import main

if __name__ == "__main__":
    main()
