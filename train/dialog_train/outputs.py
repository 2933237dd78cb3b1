"""Where the checkpoint is that a user names."""

from pathlib import Path

from dialog_gen.clip.base import FORMATS
from dialog_gen.core.errors import UsageError
from dialog_train.config import MODEL_FOLDER, REPORT_FILE


def checkpoint_folder(given: Path) -> Path:
    """The checkpoint folder itself; of the OUT of a training, its model.

    Raises UsageError for anything else.
    """
    if not given.is_dir():
        raise UsageError(f"{given} is no folder: give a checkpoint folder, such as OUT/{MODEL_FOLDER}.")
    given = given.resolve()  # so that "." has a name
    folder = given / MODEL_FOLDER if (given / REPORT_FILE).is_file() else given
    if not any(form.recognises(folder) for form in FORMATS.all().values()):
        raise UsageError(f"{given} is no checkpoint: give the OUT of a training, or OUT/{MODEL_FOLDER}.")
    return folder
