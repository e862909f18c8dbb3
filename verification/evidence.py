"""What a run found out, before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from verification.boxes import overlap
from verification.intervals import Interval
from verification.probes import Box, Probe
from verification.streaming import Floats, Scores


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured value, or the reason why there is none."""

    value: float | None
    n: int = 0
    interval: Interval | None = None
    note: str = ""
    applies: bool = True  # False: cannot be measured on this pair at all, so it cannot be primary


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer; `margins` are its own logit gaps between first and second choice."""

    ids: tuple[int, ...]  # with the token that ended it, if one did
    text: str
    margins: tuple[float, ...]
    starts: tuple[int, ...] = ()  # where in the text each token begins, for marking

    def token_span(self, at: int) -> tuple[int, int]:
        """Where in the text a token stands; empty at the end for one that has no text."""
        if at >= len(self.starts):
            return len(self.text), len(self.text)
        end = self.starts[at + 1] if at + 1 < len(self.starts) else len(self.text)
        return min(self.starts[at], len(self.text)), min(end, len(self.text))


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What both sides said to one probe; the scores are over the reference's answer."""

    probe: Probe
    reference: Answer
    candidate: Answer
    scores: Scores
    reference_box: Box | None = None  # under the grammar, when the probe asks for a box
    candidate_box: Box | None = None
    reference_right: bool | None = None  # None: the probe has no truth to be graded by
    candidate_right: bool | None = None

    @property
    def kl_mean(self) -> float:
        return float(self.scores.kl.mean())

    @property
    def kl_max(self) -> float:
        return float(self.scores.kl.max())

    @property
    def common_prefix(self) -> int:
        """How many tokens the two greedy answers share."""
        pairs = zip(self.reference.ids, self.candidate.ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @property
    def identical(self) -> bool:
        return self.reference.ids == self.candidate.ids

    @property
    def flipped(self) -> bool:
        """Whether exactly one side is right."""
        return self.reference_right is not None and self.reference_right != self.candidate_right

    @property
    def iou(self) -> float | None:
        if self.reference_box is None or self.candidate_box is None:
            return None
        return overlap(self.reference_box, self.candidate_box)

    def near_tie(self, tolerance: float) -> bool:
        """Whether the answers part, if they do, where the reference hardly preferred its token."""
        at = self.common_prefix
        return at >= len(self.reference.margins) or self.reference.margins[at] <= tolerance


@dataclass(frozen=True, slots=True)
class WeightError:
    """How far a dequantized weight is from the reference's; native module name."""

    name: str
    relative: float  # |ŵ - w| / |w|, Frobenius
    scale: float  # <w, ŵ> / <w, w>: 1 unless the whole tensor is too large or too small


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one module's output is from the reference's, relative to its norm."""

    name: str
    propagated: float  # on what the candidate itself computed so far
    local: float  # on the reference's own input: this module's fault alone


@dataclass(frozen=True, slots=True)
class Curve:
    """Per-position KL of something else against the reference: a yardstick for the candidate."""

    name: str  # "noise floor" or "rtn"
    keys: tuple[str, ...]  # probes it was measured on
    parts: tuple[Floats, ...]  # one array per probe


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One benchmark's paired comparison; a kind of probe counts as a benchmark."""

    name: str
    n: int
    reference_right: int
    candidate_right: int
    lost: int
    gained: int
    difference: float
    lower: float  # one-sided 95 % bound of the difference
    upper: float  # upper end of the two-sided 95 % interval
    p_value: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was found out about a pair."""

    findings: Mapping[str, Finding]
    results: Sequence[ProbeResult] = ()
    weights: Sequence[WeightError] = ()
    layers: Sequence[LayerError] = ()
    curves: Sequence[Curve] = ()
    tasks: Sequence[TaskResult] = ()
    culprit: str = ""  # the first module at fault, and the tensors inside it
    seconds: Mapping[str, float] = field(default_factory=dict)  # of a measurement's stage


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two snapshots, as reports name it: no machine paths."""

    label: str
    content_digest: str
    layout: str  # "original" or "native"
    source: str  # hub, repo and commit when it was downloaded, else ""
