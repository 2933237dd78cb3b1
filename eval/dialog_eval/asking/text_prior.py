"""A prior of answers by a language model that sees the question and no image (arXiv 2306.01879)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import log_softmax

from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import sha256_of_weights

_PROMPT = "Question: {question}\nAnswer:"
_ANSWER = " {answer}\n"
# Positions of logits in memory at a time; a vocabulary has some 100,000 entries.
_TOKENS_PER_BATCH = 1024


class TextPrior:
    """P(answer | question) by a causal language model, among the candidates of the question."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Opens a transformers folder: config.json, safetensors and a tokenizer. No code of the folder is run.

        Raises UsageError for a folder that has no such model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if not (folder / "config.json").is_file():
            raise UsageError(f"--prior-model {folder} is no folder of a transformers model: it has no config.json.")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **given)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **given)
        # transformers raises many types of errors for damaged folders.
        except Exception as error:  # noqa: BLE001
            raise UsageError(f"--prior-model {folder} cannot be opened: {str(error).splitlines()[0]}") from None
        self._device = torch.device(device)
        self._model.to(self._device).eval()
        self.sha256 = sha256_of_weights(self._model.state_dict())

    def log_probabilities(self, question: str, answers: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log P(answer | question), normalised over the given answers, (answers,)."""
        first = self._tokenizer.bos_token_id
        prompt = [*([] if first is None else [first]), *self._ids(_PROMPT.format(question=question))]
        told = [[*prompt, *self._ids(_ANSWER.format(answer=answer))] for answer in answers]
        step = max(1, _TOKENS_PER_BATCH // max(map(len, told)))
        sums = [total for at in range(0, len(told), step) for total in self._sums(told[at : at + step], len(prompt))]
        return log_softmax(torch.tensor(sums, dtype=torch.float64), dim=0).numpy()

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _sums(self, told: list[list[int]], prompt: int) -> list[float]:
        """The log-probability of what follows the prompt, for each list of token ids."""
        longest = max(map(len, told))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in told], device=self._device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in told], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits[:, prompt - 1 : -1].float()
        each = log_softmax(logits, dim=-1).gather(2, ids[:, prompt:, None])[..., 0]
        return (each * mask[:, prompt:]).sum(1).tolist()
