"""The tasks of `dialog-eval`: each module defines one and registers it in `dialog_eval.tasks.base.TASKS`."""
