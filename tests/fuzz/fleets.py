"""Decoders of what boxes report and centres store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fuzz.decoder import Broken, Decoder
from fuzz.mutation import Case
from sample_messages import T0_NS, box_report

from ast_stream.fleet.buckets import BucketEntry
from ast_stream.fleet.rollout import KnownBox, known_boxes
from ast_stream.messages.fleet import BoxReport, ClockReport, OutputReport, RolloutReport
from ast_stream.messages.rollout import (
    BoxProgress,
    CheckpointManifest,
    ManifestFile,
    RolloutPlan,
    WantedModel,
    content_hash,
)

_DIGEST = hashlib.sha256(b"w").hexdigest()
_HASH = f"sha256:{_DIGEST}"


def decoders(scratch: Path) -> Iterator[Decoder]:
    """Yield the decoders."""
    clock = ClockReport(offset_s=-1.5, uncertainty_s=0.1, server="ntp", is_synchronised=True)
    report = box_report(
        clock=clock,
        outputs=[OutputReport(name="c", is_connected=True, lag_s=1.0)],
        rollout=RolloutReport(wanted=_HASH, since_ns=T0_NS, began={"bark": 1}, before_s=9.0),
        problems=["none"],
    )
    file = ManifestFile(name="model.safetensors", size=1, digest=_DIGEST, pieces=[_DIGEST])
    manifest = CheckpointManifest(model=_HASH, files=[file])
    plan = RolloutPlan(
        order="1",
        content=_HASH,
        model=_HASH,
        origin="m",
        canary="farm.barn",
        after_s=60.0,
        began_ns=T0_NS,
        changed_ns=T0_NS,
        boxes={"farm.barn": BoxProgress(asked_ns=T0_NS)},
    )
    wanted = WantedModel(content=_HASH, order="1")
    yield Decoder("box report", [(report.encode(),)], _report, 0.3)
    yield Decoder("manifest of a checkpoint", [(manifest.encode(),)], _manifest, 0.3)
    yield Decoder("wanted model", [(wanted.encode(),)], lambda case: WantedModel.decode(case[0]))
    yield Decoder("plan of a roll-out", [(plan.encode(),)], _plan, 0.3)


def _report(case: Case) -> KnownBox:
    """Do with a report what a centre does."""
    report = BoxReport.decode(case[0])
    if BoxReport.decode(report.encode()).encode() != report.encode():
        raise Broken("a report does not come back")
    box = known_boxes([BucketEntry(f"{report.site}.{report.box}", case[0], 1, 0.0)])
    assert report.heard is None or isinstance(report.heard, float)
    assert report.clock.problem is None or report.clock.text
    return next(iter(box.values()))


def _manifest(case: Case) -> CheckpointManifest:
    found = CheckpointManifest.decode(case[0], content_hash(case[0]))
    if any("/" in file.name or file.name.startswith(".") for file in found.files):
        raise Broken("a name leads elsewhere", str(found.files))
    return found


def _plan(case: Case) -> RolloutPlan:
    plan = RolloutPlan.decode(case[0])
    if RolloutPlan.decode(plan.encode()) != plan:
        raise Broken("a plan does not come back")
    return plan
