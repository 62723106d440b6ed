"""Values of a DICOM data set: damage where they are needed, absent where they only describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset

from meddinov3_stroke.errors import CorruptInput


class HeaderFields:
    """The values of the data set in the file called `name`."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset, self.name = dataset, name

    def value(self, keyword: str) -> Any:
        """The value, None where it is absent or empty."""
        try:
            value = self.dataset.get(keyword)
        except Exception as error:  # pydicom's converters raise whatever they meet
            raise CorruptInput(
                f"{self.name}: {keyword} cannot be read ({type(error).__name__}); the header is damaged; fetch it again"
            ) from error
        return None if value is None or value == "" else value

    def text(self, keyword: str) -> str:
        """A description, cleaned of what does not print; empty where there is none or it cannot be read."""
        try:
            value = self.value(keyword)
        except CorruptInput:
            return ""
        text = "" if value is None else str(value)
        return "".join(character for character in text if character.isprintable()).strip()

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The values of a multi-valued description, upper case."""
        try:
            value = self.value(keyword)
        except CorruptInput:
            return ()
        many = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return tuple(str(one).strip().upper() for one in many if one is not None)

    def floats(self, keyword: str, n: int) -> list[float] | None:
        """`n` finite numbers, None where the attribute is absent, empty or no `n` finite numbers."""
        try:
            value = self.value(keyword)
            many = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            numbers = [float(one) for one in many]
        except (CorruptInput, TypeError, ValueError, OverflowError):
            return None
        return numbers if len(numbers) == n and all(map(math.isfinite, numbers)) else None

    def number(self, keyword: str) -> float | None:
        """One finite number, or None."""
        numbers = self.floats(keyword, 1)
        return None if numbers is None else numbers[0]

    def count(self, keyword: str) -> int | None:
        """A whole number that only describes, or None."""
        number = self.number(keyword)
        return int(number) if number is not None and number == int(number) else None

    def needed(self, keyword: str, default: int | None = None) -> int:
        """A whole number that the pixels cannot be read without."""
        value = self.value(keyword)
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            found = "missing" if value is None else repr(value)
            raise CorruptInput(f"{self.name}: {keyword} is {found}; expected a whole number; the header is damaged")
        return value

    def sequence(self, keyword: str) -> list[Dataset]:
        """The items of a sequence, none where it is absent."""
        value = self.value(keyword)
        return list(value) if value is not None else []
