"""How right answers are counted: recall, VQA accuracy, classification, intervals."""
