"""How far a candidate's next-token distributions are from a reference's, on given labels.

KL is KL(reference || candidate) in nats; standard errors are standard deviation / sqrt(n), ddof 1;
percentiles interpolate linearly: the definitions that text-model tools report, so that numbers can
be held beside theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from verification.intervals import exact_interval, wilson_interval

_ROWS = 64  # positions per chunk: bounds the float64 copies at 64 x vocabulary
_TOP = 5

Floats = NDArray[np.float64]
Logits = Tensor | ArrayLike


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per-position values and their summary; every array has one entry per labelled position."""

    kld_per_token: Floats
    js_per_token: Floats
    same_top1: NDArray[np.bool_]
    nll_base: Floats  # negative log likelihood of the label
    nll_cand: Floats
    top5_overlap: Floats
    max_abs_delta: float  # over all logits, before any softmax

    @property
    def n(self) -> int:
        return len(self.kld_per_token)

    @property
    def kld_mean(self) -> float:
        return float(self.kld_per_token.mean())

    @property
    def kld_sem(self) -> float:
        return _sem(self.kld_per_token)

    @property
    def kld_median(self) -> float:
        return self.kld_percentile(50)

    @property
    def kld_p90(self) -> float:
        return self.kld_percentile(90)

    @property
    def kld_p95(self) -> float:
        return self.kld_percentile(95)

    @property
    def kld_p99(self) -> float:
        return self.kld_percentile(99)

    @property
    def kld_p99_9(self) -> float:
        return self.kld_percentile(99.9)

    @property
    def kld_max(self) -> float:
        return float(self.kld_per_token.max())

    @property
    def js_mean(self) -> float:
        return float(self.js_per_token.mean())

    @property
    def top1_agreement(self) -> float:
        return float(self.same_top1.mean())

    @property
    def top1_ci95_wilson(self) -> tuple[float, float]:
        return wilson_interval(int(self.same_top1.sum()), self.n)

    @property
    def top1_ci95_exact(self) -> tuple[float, float]:
        return exact_interval(int(self.same_top1.sum()), self.n)

    @property
    def topk5_overlap_mean(self) -> float:
        return float(self.top5_overlap.mean())

    @property
    def ppl_base(self) -> float:
        return math.exp(float(self.nll_base.mean()))

    @property
    def ppl_cand(self) -> float:
        return math.exp(float(self.nll_cand.mean()))

    @property
    def mean_ln_ppl_ratio(self) -> float:
        return float((self.nll_cand - self.nll_base).mean())

    @property
    def mean_ln_ppl_ratio_sem(self) -> float:
        return _sem(self.nll_cand - self.nll_base)

    @property
    def ppl_ratio(self) -> float:
        return math.exp(self.mean_ln_ppl_ratio)

    @property
    def mean_dp(self) -> float:
        """Mean change of the label's probability, candidate minus reference."""
        return float((np.exp(-self.nll_cand) - np.exp(-self.nll_base)).mean())

    @property
    def rms_dp(self) -> float:
        change = np.exp(-self.nll_cand) - np.exp(-self.nll_base)
        return math.sqrt(float((change**2).mean()))

    def kld_percentile(self, percent: float) -> float:
        return float(np.percentile(self.kld_per_token, percent))

    def json(self) -> dict[str, Any]:
        """The summary, under the names that the golden numbers use."""
        return {
            "kld_per_token": self.kld_per_token.tolist(),
            "kld_mean": self.kld_mean,
            "kld_sem": self.kld_sem,
            "kld_median": self.kld_median,
            "kld_p90": self.kld_p90,
            "kld_p95": self.kld_p95,
            "kld_p99": self.kld_p99,
            "kld_p99.9": self.kld_p99_9,
            "kld_max": self.kld_max,
            "js_mean": self.js_mean,
            "top1_agreement": self.top1_agreement,
            "top1_ci95_wilson": list(self.top1_ci95_wilson),
            "top1_ci95_exact": list(self.top1_ci95_exact),
            "mean_ln_ppl_ratio": self.mean_ln_ppl_ratio,
            "mean_ln_ppl_ratio_sem": self.mean_ln_ppl_ratio_sem,
            "ppl_ratio": self.ppl_ratio,
            "ppl_base": self.ppl_base,
            "ppl_cand": self.ppl_cand,
            "mean_dp": self.mean_dp,
            "rms_dp": self.rms_dp,
            "topk5_overlap_mean": self.topk5_overlap_mean,
        }


def divergence(
    reference_logits: Logits, candidate_logits: Logits, labels: Tensor | ArrayLike
) -> Divergence:
    """Compare next-token distributions position by position.

    Args:
        reference_logits: (positions, vocabulary), or with leading axes that are flattened.
        candidate_logits: the same shape.
        labels: (positions,) token ids that were scored; positions with a negative label are
            left out.

    Raises:
        ValueError: shapes that do not match, no labelled position, or a logit that is not finite.
    """
    reference, candidate = _matrix(reference_logits), _matrix(candidate_logits)
    target = torch.as_tensor(labels, dtype=torch.long).reshape(-1)
    if reference.shape != candidate.shape or len(target) != len(reference):
        raise ValueError(
            f"shapes {tuple(reference.shape)}, {tuple(candidate.shape)} and {tuple(target.shape)}"
        )
    kept = target >= 0
    if not kept.any():
        raise ValueError("no position has a label")
    rows = torch.split(kept.nonzero().flatten(), _ROWS)
    return join(_chunk(reference[i], candidate[i], target[i]) for i in rows)


def join(parts: Iterable[Divergence]) -> Divergence:
    """Put the positions of several comparisons together, in order."""
    every = list(parts)
    return Divergence(
        kld_per_token=np.concatenate([part.kld_per_token for part in every]),
        js_per_token=np.concatenate([part.js_per_token for part in every]),
        same_top1=np.concatenate([part.same_top1 for part in every]),
        nll_base=np.concatenate([part.nll_base for part in every]),
        nll_cand=np.concatenate([part.nll_cand for part in every]),
        top5_overlap=np.concatenate([part.top5_overlap for part in every]),
        max_abs_delta=max(part.max_abs_delta for part in every),
    )


def _matrix(logits: Logits) -> Tensor:
    # plain lists keep their double precision
    tensor = logits if isinstance(logits, Tensor) else torch.as_tensor(np.asarray(logits, float))
    return tensor.reshape(-1, tensor.shape[-1])


def _chunk(reference: Tensor, candidate: Tensor, target: Tensor) -> Divergence:
    a, b = reference.double(), candidate.double()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("a logit is not finite")
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    top = min(_TOP, a.shape[-1])
    shared = (a.topk(top).indices[:, :, None] == b.topk(top).indices[:, None, :]).any(2)
    return Divergence(
        # rounding can leave -1e-17, which no distance is
        kld_per_token=_kl(log_p, log_q).clamp(min=0).numpy(),
        js_per_token=((_kl(log_p, log_m) + _kl(log_q, log_m)) / 2).clamp(min=0).numpy(),
        same_top1=(a.argmax(-1) == b.argmax(-1)).numpy(),
        nll_base=-log_p.gather(1, target[:, None])[:, 0].numpy(),
        nll_cand=-log_q.gather(1, target[:, None])[:, 0].numpy(),
        top5_overlap=shared.double().mean(1).numpy(),
        max_abs_delta=float((a - b).abs().max()),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _sem(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
