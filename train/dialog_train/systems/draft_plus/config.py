"""The recipe of DRAFT-plus. Each part can be left out: a weight of 0, or "none"."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dialog_train.config import CandidateFormat, FillUp, LongTextRecipe, Settings
from dialog_train.losses.base import Direction


class PlusLossSettings(Settings):
    """The weights of the losses; the loss is their sum."""

    captions: float = Field(default=1.0, ge=0)
    """Contrastive loss of captions and images."""
    dialogues: float = Field(default=0.0, ge=0)
    """Contrastive loss of one right text of each image's dialogue and images, as in DRAFT."""
    direction: Direction = "symmetric"
    """Of the contrastive losses: softmax over texts ("i2t"), over images ("t2i"), or the mean of both ("symmetric")."""
    foils: float = Field(default=1.0, ge=0)
    """Cross entropy of the right text over itself and the foils, given the image: see `losses.foils`."""
    denials: float = Field(default=0.0, ge=0)
    """The same over two texts: a right one against its denial, and a wrong one's denial against the wrong one
    (NegBench, arXiv 2501.09425)."""

    conjunctions: float = Field(default=0.0, ge=0)
    """The same over four texts that say two pairs of the image at once ("there is a star but no circle"): both as they
    are right, or one or both of them wrong."""

    truths: float = Field(default=0.0, ge=0)
    """All true texts of a batch against all false ones, whatever their questions: see `losses.truths`. Conjunctions are
    left out."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any(value for name, value in self if name != "direction"):
            raise ValueError("there is nothing to learn: the weights of all losses are 0")
        return self


class GuardSettings(Settings):
    """What holds retrieval: the tuned tower is to treat captions as the untuned one did."""

    kind: Literal["none", "vectors", "similarities"] = "none"
    """What of the captions is held: their "vectors" (the loss is 1 - cosine), or their "similarities" with the images
    of the batch (see `losses.distillation`)."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the loss."""
    recombined: bool = False
    """Also hold texts that begin as a candidate and end as a caption, or the reverse, so that texts of one style do not
    become more similar to all images than texts of another."""
    freeze_embeddings: bool = False
    """Keep the embeddings of tokens as they are."""


class DraftPlusRecipe(LongTextRecipe):
    """DRAFT-plus: teaches a text tower answers, against foils, and guards what it could do before."""

    dialogues: Literal["rotate"] = "rotate"  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    """One question-answer pair per image and step; `balance` says which."""
    texts: CandidateFormat = "statement"
    """A question and its answer become a "statement", or "question_answer", one after the other; or "both": one way in
    half of the pairs, the other way in the rest, so that the model can be asked in both."""
    foils: int = Field(default=7, ge=1, le=63)
    """Wrong answers for each pair, at most: two thirds are what the dialogues answer to questions of its type."""
    fill_up: FillUp = "misfits"
    """The other wrong answers: "misfits", which do not fit the question, or "all", answers to any questions. Statements
    of these may be true of the image: "the ball is red", for "What size is the ball?"."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """0: the pairs of an image rotate from epoch to epoch. Up to 1: pairs with rare types of questions are drawn more
    often; with 1 all types equally often wherever an image has them."""
    questions_only: bool = False
    """Train a copy of the text tower, which the saved model uses for texts that were made of a question; captions and
    all other texts keep the untuned tower, so nothing can be lost there."""
    loss: PlusLossSettings = PlusLossSettings()
    guard: GuardSettings = GuardSettings()
