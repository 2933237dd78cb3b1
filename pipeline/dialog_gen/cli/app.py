"""The command line: `dialog-gen COMMAND`. It parses, calls the Python API and prints.

Results go to stdout, everything else to stderr. Exit codes: 0 success; 1 finished, but a check failed or more images
were lost than is allowed; 2 wrong use; 130 Ctrl-C.
"""

import logging

import typer

from dialog_gen.cli.dataset import add_dataset_commands
from dialog_gen.cli.generate import add_generate_commands
from dialog_gen.cli.lists import add_list_commands
from dialog_gen.cli.publish import add_publish_commands
from dialog_gen.cli.remedies import explained
from dialog_gen.core.console import Version, begin, run_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def main() -> None:
    """Runs the command line and exits."""
    run_app(app, interrupted="what is finished is kept, the same command goes on from there", explain=explained)


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Version = False,
) -> None:
    """Generate question-answer dialogues about images with a vision-language model, and store them as Parquet."""
    begin(context, version)
    logging.getLogger("dialog_gen").setLevel(logging.INFO)


add_generate_commands(app)
add_dataset_commands(app)
add_publish_commands(app)
add_list_commands(app)


if __name__ == "__main__":
    main()
