"""`python -m dialog_eval`: the command line `dialog-eval`."""

from dialog_eval.cli import main

if __name__ == "__main__":
    main()
