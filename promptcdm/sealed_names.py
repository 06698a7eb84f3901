"""Which of `sealed-judge`'s concepts words speak of: "apple" of a red and a green one, "cat" of a cat's face too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


class Names:
    """Words to concepts. A concept has one name or more, in plain words."""

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self.names = tuple(tuple(each) for each in names)
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._holding: dict[str, set[int]] = defaultdict(set)
        for place, each in enumerate(self.names):
            for name in each:
                self._exact[name].append(place)
                for word in name.split():
                    self._holding[word].add(place)

    def covered(self, words: str) -> tuple[int, ...]:
        """Places of the concepts of this name or whose face it is; where there is none, of those whose name holds
        all of the words. Empty where the words say nothing known."""
        exact = {*self._exact.get(words, ()), *self._exact.get(f"{words} face", ())}
        if exact or not words:
            return tuple(sorted(exact))
        holding = [self._holding.get(word, set()) for word in words.split()]
        together = set.intersection(*holding)
        return tuple(
            sorted(p for p in together if any(set(words.split()) <= set(n.split()) for n in self.names[p]))
        )
