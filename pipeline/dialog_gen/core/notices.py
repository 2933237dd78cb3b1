"""What a long command says before it begins: one line for people, on a terminal and in a pipe."""

import logging

NOTICES = logging.getLogger("dialog_gen.notices")
"""The command lines show its records of the level INFO; a program that uses the Python API decides for itself."""
