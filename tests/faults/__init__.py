"""Faults of the disk and sudden deaths, injected into whole commands.

shim.c         stands between a process and the system; counts its file operations and lets one of them fail
shim.py        builds the shim; says which operation fails, and how
contents.py    what folders hold, read without the product's own readers
scenarios.py   the commands, with what they start from and what they leave
trial.py       one fault: the disturbed command, what is left, the remedy, what is there in the end
host.py        the process that all commands are forked from, so that Python starts once
test_faults.py plans the faults, prints the table and asserts its last columns
"""
