"""Makes scorers from settings."""

from collections.abc import Mapping
from typing import Any

from dialog_gen.gates import pair_scores
from dialog_gen.gates.pair_scores import PairScorer
from dialog_gen.gates.scorer import Scorer
from dialog_gen.gates.settings import GateSettings

_OF_A_ROW: dict[str, PairScorer] = {
    "empty": PairScorer(pair_scores.echo),
    "repetition": PairScorer(pair_scores.repetition),
    "truncation": PairScorer(pair_scores.truncation, ("texts", "finish_reasons")),
    "leak": PairScorer(pair_scores.leak),
    "near_duplicate": PairScorer(pair_scores.near_duplicates),
    "length": PairScorer(pair_scores.length),
    "logprob": PairScorer(pair_scores.logprob, ("texts", "answer_logprobs")),
}


def make_scorers(settings: GateSettings, dataset_config: Mapping[str, Any]) -> dict[str, Scorer]:
    """Gate -> its scorer; `dataset_config` is the configuration that the dialogues were made with.

    Loads no model. Raises UsageError where a gate cannot work so, MissingExtraError where it needs an extra.
    """
    return {name: _make(name, chosen, dataset_config) for name, chosen in settings.chosen().items()}


def _make(name: str, settings: Any, dataset_config: Mapping[str, Any]) -> Scorer:
    # What a gate imports is its own affair: a dataset that is checked for length should not wait for a model's library.
    if name in _OF_A_ROW:
        return _OF_A_ROW[name]
    if name == "yes_bias":
        from dialog_gen.gates.yes_bias import YesBias

        return YesBias(settings)
    if name == "set_duplicate":
        from dialog_gen.gates.set_duplicate import SetDuplicate

        return SetDuplicate(settings)
    if name == "language":
        from dialog_gen.gates.language import Language

        return Language(settings)
    if name == "similarity":
        from dialog_gen.gates.similarity import Similarity

        return Similarity(settings)
    from dialog_gen.gates.self_consistency import SelfConsistency

    return SelfConsistency(settings, dict(dataset_config))
