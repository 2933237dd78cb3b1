"""From images to dialogues: the plan of a run, the run, and one dialogue."""
