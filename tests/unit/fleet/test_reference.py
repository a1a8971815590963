"""The reference of the fleet names every field there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_stream.messages import fleet, rollout
from ast_stream.messages.codec import Body

PAGE = (Path(__file__).parents[3] / "docs/reference/fleet.md").read_text()
BODIES = (
    fleet.BoxReport,
    fleet.ClockReport,
    fleet.WorkerReport,
    fleet.StreamReport,
    fleet.OutputReport,
    fleet.RolloutReport,
    rollout.CheckpointManifest,
    rollout.ManifestFile,
    rollout.WantedModel,
    rollout.RolloutPlan,
    rollout.BoxProgress,
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_every_field_is_named(body: type[Body]) -> None:
    for name, field in body.model_fields.items():
        wire = field.alias or name
        assert f"`{wire}`" in PAGE or f'"{wire}"' in PAGE, wire
