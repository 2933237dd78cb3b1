"""Plans of trainings and evaluations: the study and the tables of the thesis, each run by one command.

A plan is a TOML file (`plan`). It becomes steps (`steps`), each of which is a command that a user could type; they run
in the order of what they need (`run`), and a page (`pages`) is written from what they measured.
"""
