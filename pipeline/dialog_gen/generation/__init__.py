"""From images to dialogues: `run.generate` does all of a run; its plan, its job, and one dialogue."""
