"""What each column of the record (`dialog_gen.dataset.record`) holds, for people who read a dataset card."""

COLUMN_NOTES = {
    "image_id": "the source's own key, unique in the dataset",
    "image_sha256": "hash of the image's bytes as stored",
    "images": "the image as it was read, a list of one; null where it was left out",
    "url": "where the image came from",
    "source_sha256": "hash of what the URL served, if that was stored as another image",
    "caption": "what the source says of the image; the model never saw it",
    "texts": "the question-answer pairs, in order",
    "answer_logprobs": "for each pair the mean log-probability of the answer's tokens",
    "gates": "for each pair what each quality gate says: its score, and whether that marks the pair; null if no gate "
    "was applied",
    "model": "who spoke",
    "model_revision": "the model's commit",
    "engine": "what ran the model",
    "engine_version": "its version",
    "protocol": "the list of prompts",
    "prompt_sha256": "hash of the chat template and the prompts",
    "sampling": "how answers were decoded; the seed is this row's own",
    "finish_reasons": "how each turn's answer ended",
    "attempts": "tries until the answer had the form asked for",
    "created_at": "when",
    "status": "rejected: the model's words; unreadable: the image",
    "reason": "why",
    "detail": "more about it",
    "raw": "the answers as the model wrote them",
}
"""Column of DIALOGUES or REJECTS -> what it holds."""
