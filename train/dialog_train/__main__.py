"""`dialog-train`, `python -m dialog_train` and `accelerate launch -m dialog_train`."""

from dialog_gen.core.start import start


def main() -> None:
    """Runs the command line and exits."""
    start("dialog_train.cli")


if __name__ == "__main__":
    main()
