"""Questions and answers as texts, for training and evaluation: forms of questions, statements, a prior of answers."""
