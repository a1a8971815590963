"""Operating a fleet: reports of boxes, their clocks, and roll-outs of models."""
