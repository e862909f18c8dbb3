"""What a step counts while tensors go by: values that are not finite, or no longer."""

from __future__ import annotations

from collections.abc import Container, Mapping

from model_store.nonfinite import NonFinite

OVERFLOWED, NAN, INFINITE = "overflowed", "nan", "infinite"
_SAID = {
    OVERFLOWED: "finite values became infinite",
    NAN: "values are NaN",
    INFINITE: "values are infinite",
}
_MOST_NAMED = 5


class Tally:
    """Counts by kind and target tensor; zeros are not kept."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {kind: {} for kind in _SAID}

    def overflow(self, name: str, count: int) -> None:
        """Count finite values of a tensor that a cast made infinite."""
        self._add(OVERFLOWED, name, count)

    def nonfinite(self, name: str, found: NonFinite) -> None:
        """Count what a written tensor holds."""
        self._add(NAN, name, found.nan)
        self._add(INFINITE, name, found.infinite)

    def _add(self, kind: str, name: str, count: int) -> None:
        if count:
            self._counts[kind][name] = self._counts[kind].get(name, 0) + count

    def restore(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Take over what a killed run had counted for the tensors that it finished."""
        for kind, by_name in counts.items():
            for name, count in by_name.items():
                self._add(kind, name, count)

    def counts(self, kind: str) -> dict[str, int]:
        """The counts of a kind, by name."""
        return dict(sorted(self._counts[kind].items()))

    def json(self, names: Container[str]) -> dict[str, dict[str, int]]:
        """The counts of some tensors, as `restore` takes them."""
        return {
            kind: {name: count for name, count in counts.items() if name in names}
            for kind, counts in self._counts.items()
        }

    def sentences(self) -> list[str]:
        """Say it, for CHANGES.md and the terminal."""
        return [_sentence(counts, _SAID[kind]) for kind, counts in self._counts.items() if counts]


def _sentence(counts: Mapping[str, int], said: str) -> str:
    worst = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"`{name}` ({count})" for name, count in worst[:_MOST_NAMED])
    more = f" and {len(worst) - _MOST_NAMED} more" if len(worst) > _MOST_NAMED else ""
    return f"{sum(counts.values())} {said}, in {named}{more}."
