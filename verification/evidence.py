"""What a run found out, before anything is judged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from verification.boxes import overlap
from verification.divergence import Divergence
from verification.intervals import Interval
from verification.probes import Box, Probe


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


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What both sides said to one probe; the divergence is over the reference's answer."""

    probe: Probe
    reference: Answer
    candidate: Answer
    divergence: Divergence
    reference_box: Box | None = None  # under the grammar, when the probe asks for a box
    candidate_box: Box | None = None

    @property
    def common_prefix(self) -> int:
        """How many tokens the two greedy answers share."""
        pairs = zip(self.reference.ids, self.candidate.ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @property
    def identical(self) -> bool:
        return self.reference.ids == self.candidate.ids

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
class Side:
    """One of the two snapshots, as reports name it: no machine paths."""

    label: str
    content_digest: str
    layout: str  # "original" or "native"
    source: str  # hub, repo and commit when it was downloaded, else ""
