"""How loud each slot's stream is: what is shown, and what the gate looks at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.units import FULL_SCALE, amplitude_to_dbfs


class LevelMeter:
    """RMS of the hops in each slot's window.

    Args:
        gate_dbfs: windows whose loudest hop is quieter are gated; None: none are.
    """

    def __init__(self, window: int, hop: int, gate_dbfs: float | None) -> None:
        self._hop = hop
        self.set_gate(gate_dbfs)
        self._rms = np.zeros((0, max(1, window // hop)), np.float64)
        self._is_gated = np.zeros(0, np.bool_)

    def set_gate(self, gate_dbfs: float | None) -> None:
        """Gate by another level from the next hop on."""
        self._gate = 0.0 if gate_dbfs is None else 10 ** (gate_dbfs / 20)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grow_by = n_slots - len(self._rms)
        self._rms = np.pad(self._rms, ((0, grow_by), (0, 0)))
        self._is_gated = np.pad(self._is_gated, (0, grow_by))

    def reset(self, slot: int) -> None:
        """Forget what a slot heard."""
        self._rms[slot] = 0
        self._is_gated[slot] = False

    def measure(
        self, slots: npt.NDArray[np.int64], pcm: npt.NDArray[np.int16]
    ) -> npt.NDArray[np.bool_]:
        """Take the next hops of each slot, shape (n, hops * hop).

        Returns:
            Whether the window that ends with each hop is gated, shape (hops, n).
        """
        hops = pcm.reshape(len(pcm), -1, self._hop).astype(np.float32) / FULL_SCALE
        n_hops, n_kept = hops.shape[1], self._rms.shape[1]
        rms = np.concatenate([self._rms[slots], np.sqrt(np.mean(hops * hops, axis=2))], axis=1)
        self._rms[slots] = rms[:, -n_kept:]
        windows = np.lib.stride_tricks.sliding_window_view(rms, n_kept, axis=1)[:, -n_hops:]
        is_gated: npt.NDArray[np.bool_] = (windows.max(axis=2) < self._gate).T
        self._is_gated[slots] = is_gated[-1]
        return is_gated

    def is_gated(self, slot: int) -> bool:
        """Tell whether the newest window was gated."""
        return bool(self._is_gated[slot])

    def level_dbfs(self, slot: int) -> float:
        """Return the level of the newest hop."""
        return amplitude_to_dbfs(float(self._rms[slot, -1]))
