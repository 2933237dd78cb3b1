"""`dialog-gen`, and `python -m dialog_gen`."""

from dialog_gen.core.start import start


def main() -> None:
    """Runs the command line and exits."""
    start("dialog_gen.cli.app")


if __name__ == "__main__":
    main()
