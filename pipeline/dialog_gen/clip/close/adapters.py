"""Adapters make text vectors similar to image vectors, for the training of a decoder (arXiv 2211.09778, sec. 4).

    none     normalise(t + w n)
    mean     normalise(t + mean(i - t) + w n)
    linear   normalise(normalise(A t + b) + w n), the least squares fit of i
    cov      normalise(t + mean(i - t) + 3 c + w n), c ~ N(0, covariance of i - t)

t, i: unit-norm vectors of paired texts and images; n ~ N(0, 1) in each dimension; w: the noise. The factor 3 is that of
the published code. In evaluation the decoder gets the unchanged unit-norm image vector: adapters and noise are used
only in training, as in the published code.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.close.layout import AdapterKind
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import check_regular
from dialog_gen.core.tensors import save_tensors

_COVARIANCE_SCALE = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A fitted adapter. All tensors are float32; a part that the kind does not have is None."""

    kind: AdapterKind = "none"
    matrix: Tensor | None = None
    """(D, D)"""
    shift: Tensor | None = None
    """(D,)"""
    covariance: Tensor | None = None
    """(D, D)"""

    def noise_root(self, noise: float) -> Tensor | float:
        """R with R R^T = 9 covariance + w^2 I, w = `noise`: R times standard normal numbers gives both noises at once.

        R is (D, D), or just w if the kind has no covariance.
        """
        if self.covariance is None:
            return noise
        values, vectors = torch.linalg.eigh(self.covariance.double())
        variances = _COVARIANCE_SCALE**2 * values.clamp_min(0) + noise**2
        return ((vectors * variances.sqrt()) @ vectors.T).float()

    def __call__(self, texts: Tensor, normal: Tensor, root: Tensor | float) -> Tensor:
        """Unit-norm text vectors (N, D), standard normal numbers (N, D) and the `noise_root` -> (N, D), unit-norm."""
        adapted = texts if self.matrix is None else texts @ self.matrix.T
        adapted = adapted if self.shift is None else adapted + self.shift
        adapted = adapted if self.matrix is None else normalize(adapted, dim=-1)
        return normalize(adapted + (normal @ root if isinstance(root, Tensor) else normal * root), dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The parts that the kind has, by name."""
        parts = {"matrix": self.matrix, "shift": self.shift, "covariance": self.covariance}
        return {name: part for name, part in parts.items() if part is not None}


def fit_adapter(kind: AdapterKind, pairs: Iterable[tuple[Tensor, Tensor]]) -> Adapter:
    """Fits an adapter to batches of paired text and image vectors, (N, D) each, in one pass, in float64.

    Raises UsageError if there are not more pairs than dimensions.
    """
    if kind == "none":
        return Adapter()
    count, means, products = 0, torch.zeros(0), torch.zeros(0)
    for texts, images in pairs:
        both = torch.cat([texts, images], dim=1).double()  # (N, 2 D)
        if not count:
            means, products = both.new_zeros(both.shape[1]), both.new_zeros(both.shape[1], both.shape[1])
        count += len(both)
        means += both.sum(0)
        products += both.T @ both
    width = len(means) // 2
    if count <= width:
        raise UsageError(f'adapter = "{kind}" needs more pairs than dimensions ({width}), the dataset has {count}.')
    means = means / count
    moments = products / count - torch.outer(means, means)
    text, image = slice(None, width), slice(width, None)
    shift = means[image] - means[text]
    if kind == "mean":
        return Adapter(kind=kind, shift=shift.float())
    if kind == "cov":
        cross = moments[image, text]
        return Adapter(
            kind=kind,
            shift=shift.float(),
            covariance=(moments[image, image] + moments[text, text] - cross - cross.T).float(),
        )
    # In a direction in which texts do not vary, no slope can be fitted: the pseudo-inverse ignores it.
    matrix = moments[image, text] @ torch.linalg.pinv(moments[text, text], rtol=1e-8, hermitian=True)
    return Adapter(kind=kind, matrix=matrix.float(), shift=(means[image] - matrix @ means[text]).float())


def save_adapter(adapter: Adapter, file: Path) -> None:
    """Writes an adapter as a safetensors file, with the kind in its metadata."""
    save_tensors(adapter.tensors(), file, {"kind": adapter.kind})


def load_adapter(file: Path) -> Adapter:
    """Reads an adapter that `save_adapter` wrote. Raises OSError or SafetensorError if the file cannot be read."""
    check_regular(file)
    with safe_open(file, "pt") as content:
        kind: AdapterKind = content.metadata()["kind"]
        return Adapter(kind=kind, **{name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118
