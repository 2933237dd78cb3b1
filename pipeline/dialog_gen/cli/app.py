"""The command line: `dialog-gen COMMAND`. It parses, calls the Python API and prints.

Results go to stdout, everything else to stderr. Exit codes: 0 success; 1 finished, but a check failed or more images
were lost than is allowed; 2 wrong use; 130 Ctrl-C.
"""

import logging

from dialog_gen.cli.batch import add_batch_commands
from dialog_gen.cli.dataset import add_dataset_commands
from dialog_gen.cli.generate import add_generate_commands
from dialog_gen.cli.init import add_init_command
from dialog_gen.cli.lists import add_list_commands
from dialog_gen.cli.look import add_look_commands
from dialog_gen.cli.planning import add_planning_commands
from dialog_gen.cli.publish import add_publish_commands
from dialog_gen.cli.remedies import explained
from dialog_gen.cli.rows import add_row_commands
from dialog_gen.core.console import Version, log_to_stderr, run_app
from dialog_gen.core.help import new_app

app = new_app()


def main() -> None:
    """Runs the command line and exits."""
    run_app(app, interrupted="what is finished is kept, the same command goes on from there", explain=explained)


@app.callback()
def common(version: Version = False) -> None:
    """Generate question-answer dialogues about images with a vision-language model, and store them as Parquet."""
    log_to_stderr()
    logging.getLogger("dialog_gen").setLevel(logging.INFO)


add_init_command(app)
add_generate_commands(app)
add_batch_commands(app)
add_planning_commands(app)
add_dataset_commands(app)
add_look_commands(app)
add_row_commands(app)
add_publish_commands(app)
add_list_commands(app)


if __name__ == "__main__":
    main()
