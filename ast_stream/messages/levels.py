"""Sound levels on the feed, each second."""

from __future__ import annotations

from pydantic import Field

from ast_stream.labels import stream_topic
from ast_stream.messages.codec import FeedBody, SampleIndex, Seconds, Text, Time

BAND_NAMES = (
    "25", "31.5", "40", "50", "63", "80", "100", "125", "160", "200", "250", "315", "400", "500",
    "630", "800", "1000", "1250", "1600", "2000", "2500", "3150", "4000", "5000", "6300",
)  # fmt: skip
"""Nominal centres of the third octaves, Hz."""


class LevelsMessage(FeedBody):
    """The sound levels of one second of a stream.

    With `calibrated` they are sound pressure levels, dB re 20 µPa; else dB re full scale, where a
    full-scale sine has -3. All but `third_octaves` are A-weighted.
    """

    stream: Text
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Of the stream, as configured."""
    epoch: Text
    """Run of the capture process."""
    start_sample: SampleIndex
    """Sample index of the start of the second, a multiple of 16000."""
    time_ns: Time
    """Wall time of that sample."""
    duration_s: Seconds = 1.0
    """Seconds that the levels are about."""
    calibrated: bool
    """Whether `calibration_db` of the stream is set."""
    laeq: float
    """Equivalent continuous level (energy mean)."""
    laf_max: float
    """Highest level with the fast time weighting (125 ms)."""
    laf_min: float
    """Lowest level with the fast time weighting."""
    l10: float
    """What the level with the fast time weighting exceeds in 10 % of the second."""
    l50: float
    """The same in 50 %."""
    l90: float
    """The same in 90 %: the background."""
    third_octaves: dict[Text, float] = Field(default_factory=dict)
    """Not weighted, by nominal centre in Hz, from `25` to `6300`."""

    @property
    def topic(self) -> str:
        """`levels/<stream>/`."""
        return stream_topic("levels", self.stream)
