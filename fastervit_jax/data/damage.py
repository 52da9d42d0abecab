"""Images that cannot be decoded: counted and named in training, up to a share.

A training batch replaces a damaged image by another one (`batches.py`), the same on every run.
This keeps the account of it, for one host, since its loader was made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from absl import logging


class Damaged(NamedTuple):
    """One image that could not be decoded.

    Attributes:
      key: the file or record.
      reason: what Pillow found.
    """

    key: str
    reason: str


class TooMuchDamageError(ValueError):
    """More images could not be decoded than the configured share allows."""


@dataclass
class DamageReport:
    """What one host's loader met so far.

    Attributes:
      max_share: damaged images allowed, as a share of the images drawn.
      epoch_size: images this host draws in an epoch. The share is never taken of fewer, so that
        one damaged image at the start of a run is not one of a hundred.
      drawn: images drawn, damaged ones included.
      count: times a damaged image was drawn; an image that comes up every epoch counts each time.
      reasons: the reason by key, an entry a damaged file or record.
    """

    max_share: float
    epoch_size: int
    drawn: int = 0
    count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def start(self, drawn: int, count: int) -> None:
        """Goes on from what was drawn and counted before a run was interrupted."""
        self.drawn, self.count = drawn, count

    def add(self, images: int, damaged: Sequence[Damaged]) -> None:
        """Enters one batch of `images` rows in which `damaged` had to be replaced.

        Logs a warning for every file or record met for the first time.

        Raises:
          TooMuchDamageError: past `max_share`.
        """
        self.drawn += images + len(damaged)
        self.count += len(damaged)
        for key, reason in damaged:
            if key not in self.reasons:
                logging.warning("Damaged image, replaced by another: %s (%s)", key, reason)
                self.reasons[key] = reason
        if self.count > self.max_share * max(self.drawn, self.epoch_size):
            key, reason = damaged[-1]
            raise TooMuchDamageError(
                f"{self.count} of the {self.drawn} images drawn so far could not be decoded, which "
                f"is more than the allowed share of {self.max_share:g}; the last was {key} "
                f"({reason}): repair or remove such files, or raise max_damaged_share."
            )
