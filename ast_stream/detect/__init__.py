"""From audio blocks to events: the detector, a pure core without sockets, clock or files."""

from ast_stream.detect.detector import Detector

__all__ = ["Detector"]
