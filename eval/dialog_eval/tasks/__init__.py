"""The tasks of `dialog-eval`, one a module."""
