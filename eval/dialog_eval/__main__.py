"""`dialog-eval`, and `python -m dialog_eval`."""

from dialog_gen.core.start import start


def main() -> None:
    """Runs the command line and exits."""
    start("dialog_eval.cli")


if __name__ == "__main__":
    main()
