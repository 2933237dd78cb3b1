"""Repair of a dataset: what is damaged is set aside and made anew by the command that made it."""
