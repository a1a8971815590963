"""A roll-out, run at the centre: a canary first, then batches; all roll back if a box is worse.

The only state is a plan in the bucket. A step reads the plan and the reports, writes the new plan,
and then updates the model that each box is asked to use. A process that is killed in between
finds in the plan what is left to do.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ast_stream.errors import AstStreamError, WireError
from ast_stream.fleet.buckets import ALL, PLAN, BucketEntry
from ast_stream.fleet.health import BAD_REPORTS, baseline_of, worse
from ast_stream.messages.fleet import MAX_PROBLEM_CHARACTERS, BoxReport
from ast_stream.messages.rollout import (
    ENDED,
    HASH,
    MAX_PLAN_BYTES,
    BoxProgress,
    RolloutPlan,
    Stage,
    WantedModel,
)
from ast_stream.runtime.nats import NatsError
from ast_stream.units import NS_PER_SECOND, format_time

SILENT_REPORTS = 2.5  # missed reports after which a box counts as silent
MIN_SILENT_S = 60.0
SETTLE_S = 60.0  # during which a restarted box may be behind
PREPARE_LIMIT_S = 3600.0  # for a box to fetch, check and start a model
CANARY_AWAY_S = 900.0  # a canary that does not report for so long has failed

logger = logging.getLogger(__name__)


class RolloutError(AstStreamError):
    """A roll-out cannot begin, or does not exist; the text is a sentence."""


class PlanStore(Protocol):
    """What a roll-out needs of the store."""

    def get(self, key: str) -> BucketEntry | None:
        """Return a value; None: there is none."""

    def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        """Replace a value; raises NatsError if its revision is another one."""

    def delete(self, key: str) -> None:
        """Delete a value."""

    def reports(self) -> list[BucketEntry]:
        """Return the newest report of every box."""

    def all_wanted(self) -> list[BucketEntry]:
        """Return the wanted models: of single boxes, and of all."""


def box_name(key: str) -> str:
    """Return the name of a box as people write it.

    >>> box_name("farm.barn")
    'farm/barn'
    """
    return key.replace(".", "/")


@dataclass(frozen=True)
class KnownBox:
    """A box as the centre knows it.

    Attributes:
        key: `<site>.<box>`.
        report: None: it cannot be read.
        age_s: age of the report; None: not known.
        error: why the report cannot be read.
    """

    key: str
    report: BoxReport | None
    age_s: float | None = None
    error: str | None = None

    @property
    def is_silent(self) -> bool:
        """Whether its next report is long overdue."""
        if self.report is None or self.age_s is None:
            return self.report is None
        return self.age_s > max(MIN_SILENT_S, SILENT_REPORTS * self.report.every_s)

    @property
    def follows(self) -> bool:
        """Whether it follows roll-outs."""
        return self.report is not None and self.report.rollout is not None

    def uses(self, content: str | None) -> bool:
        """Return whether it uses this model and has finished switching to it."""
        rollout = None if self.report is None else self.report.rollout
        is_settled = rollout is not None and rollout.state == "in_use"
        return rollout is not None and is_settled and rollout.current == content


def known_boxes(entries: Iterable[BucketEntry]) -> dict[str, KnownBox]:
    """Return the boxes whose reports are in a bucket, by key."""
    found = {}
    for entry in entries:
        try:
            report = BoxReport.decode(entry.value)
            if f"{report.site}.{report.box}" != entry.key:
                raise WireError(f"expected the report of {entry.key}, got that of another box")
        except WireError as error:
            found[entry.key] = KnownBox(entry.key, None, entry.age_s, str(error))
        else:
            found[entry.key] = KnownBox(entry.key, report, entry.age_s)
    return found


@dataclass(frozen=True)
class Terms:
    """The terms of a roll-out.

    Attributes:
        canary: `<site>.<box>`.
        site: only boxes of this site; None: all.
        after_s: how long the canary must do well before the first batch.
        batch: number of boxes in a batch.
        settle_s: how long a batch must do well before the next one.
        max_failures: number of boxes besides the canary that may fail before all roll back.
    """

    canary: str
    site: str | None = None
    after_s: float = 3600.0
    batch: int = 10
    settle_s: float = 60.0
    max_failures: int = 0


class Rollout:
    """Carries out a roll-out, step by step.

    Args:
        events_factor: see `health.worse`.
        now_ns: wall clock of the centre.
        say: called with a sentence about each change.
    """

    def __init__(
        self,
        store: PlanStore,
        *,
        events_factor: float = 3.0,
        now_ns: Callable[[], int] = time.time_ns,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._store = store
        self._events_factor = events_factor
        self._now_ns = now_ns
        self._say = say

    def plan(self) -> RolloutPlan | None:
        """Return the newest roll-out; None: there was none."""
        return self._read()[0]

    def begin(self, content: str, model: str, origin: str, terms: Terms) -> RolloutPlan:
        """Begin a roll-out, or continue the current one if it has the same model and terms.

        Raises:
            RolloutError: another roll-out is under way, or the canary is unsuitable.
        """
        plan, revision = self._read()
        if plan is not None and plan.stage not in ENDED:
            if (plan.content, plan.canary, plan.site) == (content, terms.canary, terms.site):
                return plan
            text = "expected none to be under way, got one of"
            hint = "end it first: ast-stream fleet rollout return"
            raise RolloutError(
                f"roll-out: {text} {plan.content} at {box_name(plan.canary)}; {hint}"
            )
        self._check_canary(terms, content)
        everyone = next((e for e in self._store.all_wanted() if e.key == ALL), None)
        now_ns = self._now_ns()
        plan = RolloutPlan(
            order=f"{now_ns // NS_PER_SECOND}-{secrets.token_hex(4)}",
            content=content,
            model=model,
            origin=origin,
            canary=terms.canary,
            site=terms.site,
            after_s=terms.after_s,
            batch=terms.batch,
            settle_s=terms.settle_s,
            max_failures=terms.max_failures,
            began_ns=now_ns,
            changed_ns=now_ns,
            had_all=everyone is not None,
            previous_all=None if everyone is None else WantedModel.decode(everyone.value).content,
        )
        self._write(plan, revision)
        self._say(f"{box_name(terms.canary)} is asked to use {content}")
        return plan

    def give_up(self, reason: str) -> RolloutPlan:
        """Roll all boxes back to their previous models, even if the roll-out has finished.

        Raises:
            RolloutError: there is no roll-out.
        """
        plan, revision = self._read()
        if plan is None:
            raise RolloutError("roll-out: expected one to return from, got none")
        if plan.stage not in ("returning", "returned"):
            plan = self._moved(plan, "returning", reason)
            self._write(plan, revision)
        return plan

    def step(self) -> RolloutPlan | None:
        """Take the next step, and return the plan; None: there is no roll-out.

        Raises:
            NatsError: the store cannot be reached, or was changed by another process; try again.
        """
        plan, revision = self._read()
        if plan is None:
            return None
        boxes = known_boxes(self._store.reports())
        new = self._next(plan, boxes)
        if new != plan:
            self._write(new, revision)
        self._make_agree(new, boxes)
        return new

    def _next(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> RolloutPlan:
        match plan.stage:
            case "canary":
                return self._judge_canary(plan, boxes)
            case "others":
                return self._go_on(plan, boxes)
            case "finishing":
                return self._moved(plan, "done") if self._has_finished(plan, boxes) else plan
            case "returning":
                return self._see_them_return(plan, boxes)
        return plan

    def _judge_canary(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> RolloutPlan:
        box = boxes.get(plan.canary)
        progress = plan.boxes.get(plan.canary)
        if progress is None:
            if box is None or box.report is None:
                return plan
            return self._asked(plan, [box])
        progress = self._watched(plan, progress, box)
        plan = self._with(plan, plan.canary, progress)
        if progress.failed is not None:
            return self._moved(plan, "returning", f"{box_name(plan.canary)}: {progress.failed}")
        if progress.in_use_ns is None or progress.bad:
            return plan
        good_s = (self._now_ns() - progress.in_use_ns) / NS_PER_SECOND
        if good_s >= plan.after_s and box is not None and not box.is_silent:
            return self._moved(plan, "others")
        return plan

    def _go_on(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> RolloutPlan:
        """Watch the boxes that were asked, and ask the next batch once these do well."""
        under_way = 0
        for key, progress in plan.boxes.items():
            box = boxes.get(key)
            if progress.failed is not None:
                continue
            if self._has_settled(plan, progress):
                plan = self._with(plan, key, _settled(progress))
                continue
            progress = self._watched(plan, progress, box)
            plan = self._with(plan, key, progress)
            is_there = box is not None and not box.is_silent
            under_way += progress.failed is None and is_there
        failures = {key: box.failed for key, box in plan.boxes.items() if box.failed is not None}
        if len(failures) > plan.max_failures:
            key, reason = next(iter(failures.items()))
            return self._moved(plan, "returning", f"{box_name(key)}: {reason}")
        if under_way:
            return plan
        waiting = [
            box
            for key, box in sorted(boxes.items())
            if key not in plan.boxes and box.follows and not box.is_silent and _is_in(plan, key)
        ]
        if not waiting:
            return self._moved(plan, "finishing")
        return self._asked(plan, waiting[: plan.batch])

    def _watched(
        self, plan: RolloutPlan, progress: BoxProgress, box: KnownBox | None
    ) -> BoxProgress:
        """Return the progress of a box, updated from its newest report."""
        now_ns = self._now_ns()
        asked_s = (now_ns - (progress.asked_ns or now_ns)) / NS_PER_SECOND
        if box is None or box.report is None or box.is_silent:
            away_s = asked_s if box is None or box.age_s is None else min(asked_s, box.age_s)
            if away_s > CANARY_AWAY_S:
                return _failed(progress, f"it has not reported for {away_s:.0f} s")
            return progress
        report, rollout = box.report, box.report.rollout
        if rollout is None:
            return _failed(progress, "it does not follow any more (fleet.models.follow)")
        if rollout.wanted == plan.content and rollout.state in ("refused", "returned"):
            return _failed(progress, rollout.detail or rollout.state)
        if not box.uses(plan.content):
            if progress.in_use_ns is None and asked_s > PREPARE_LIMIT_S:
                why = f": {rollout.detail}" if rollout.detail else ""
                return _failed(progress, f"it does not use it after {asked_s:.0f} s{why}")
            return progress
        if progress.in_use_ns is None:
            self._say(f"{box_name(box.key)} uses it")
            return progress.model_copy(update={"in_use_ns": now_ns})
        return self._judged(plan, progress, report)

    def _judged(self, plan: RolloutPlan, progress: BoxProgress, report: BoxReport) -> BoxProgress:
        judged = format_time(report.time_ns)
        if judged == progress.judged or progress.baseline is None or progress.in_use_ns is None:
            return progress
        used_s = (self._now_ns() - progress.in_use_ns) / NS_PER_SECOND
        found = worse(
            report,
            progress.baseline,
            events_factor=self._events_factor,
            has_settled=used_s > min(SETTLE_S, plan.after_s / 2, plan.settle_s),
        )
        if not found:
            return progress.model_copy(update={"bad": 0, "judged": judged})
        text, box = "; ".join(found), f"{report.site}/{report.box}"
        logger.warning("%s: %s (%d of %d)", box, text, progress.bad + 1, BAD_REPORTS)
        if progress.bad + 1 >= BAD_REPORTS:
            return _failed(progress, found[0])
        return progress.model_copy(update={"bad": progress.bad + 1, "judged": judged})

    def _see_them_return(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> RolloutPlan:
        """Include boxes that followed the wanted model of all, and check whether all are back."""
        for key, box in boxes.items():
            rollout = None if box.report is None else box.report.rollout
            if rollout is not None and key not in plan.boxes and rollout.current == plan.content:
                progress = BoxProgress(previous=_hash(rollout.previous), asked_ns=self._now_ns())
                plan = self._with(plan, key, progress)
        for key, progress in plan.boxes.items():
            known = boxes.get(key)
            if known is None or known.is_silent or not known.follows:
                continue  # it will roll back when it is online again
            if not known.uses(progress.previous):
                return plan
        return self._moved(plan, "returned", plan.reason)

    def _has_finished(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> bool:
        return self._wanted(plan, boxes) == _as_wanted(self._store.all_wanted())

    def _asked(self, plan: RolloutPlan, boxes: Iterable[KnownBox]) -> RolloutPlan:
        """Add boxes to the plan, with the models they roll back to and their baselines."""
        for box in boxes:
            assert box.report is not None
            rollout = box.report.rollout
            progress = BoxProgress(
                previous=None if rollout is None else _hash(rollout.current),
                baseline=baseline_of(box.report),
                asked_ns=self._now_ns(),
            )
            if box.uses(plan.content):  # nothing to change
                progress = progress.model_copy(update={"in_use_ns": self._now_ns()})
            plan = self._with(plan, box.key, progress)
        return plan

    def _wanted(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> dict[str, WantedModel]:
        """Return the models that this roll-out wants: of single boxes, and of all."""
        before = _as_wanted(self._store.all_wanted())
        found = dict(before)
        new = WantedModel(content=plan.content, order=plan.order)
        if plan.stage in ("canary", "others"):
            return found | {key: new for key in plan.boxes}
        if plan.stage in ("finishing", "done") and plan.site is None:
            return {ALL: new}
        if plan.stage in ("finishing", "done"):
            there = [key for key in boxes if _is_in(plan, key)]
            return found | {key: new for key in (*plan.boxes, *there)}
        order = f"{plan.order}-return"
        for key, progress in plan.boxes.items():
            found[key] = WantedModel(content=progress.previous, order=order)
        if found.get(ALL) == new:
            del found[ALL]
            if plan.had_all:
                found[ALL] = WantedModel(content=plan.previous_all, order=order)
        return found

    def _make_agree(self, plan: RolloutPlan, boxes: Mapping[str, KnownBox]) -> None:
        """Write the wanted models where they differ: first that of all, then of single boxes."""
        if plan.stage in ENDED:
            return
        there, wanted = _as_wanted(self._store.all_wanted()), self._wanted(plan, boxes)
        for key in sorted(wanted, key=lambda key: (key != ALL, key)):
            if there.get(key) != wanted[key]:
                self._store.put(key, wanted[key].encode())
        for key in there:
            if key not in wanted:
                self._store.delete(key)

    def _has_settled(self, plan: RolloutPlan, progress: BoxProgress) -> bool:
        if progress.in_use_ns is None or progress.bad:
            return False
        return self._now_ns() - progress.in_use_ns >= plan.settle_s * NS_PER_SECOND

    def _check_canary(self, terms: Terms, content: str) -> None:
        box = known_boxes(self._store.reports()).get(terms.canary)
        name = box_name(terms.canary)
        if box is None or box.report is None or box.is_silent:
            raise RolloutError(f"--canary {name}: expected a box that reports, got none")
        if not box.follows:
            text = "expected a box with fleet.models.follow: true in its configuration"
            raise RolloutError(f"--canary {name}: {text}, got another one")
        if terms.site is not None and not terms.canary.startswith(f"{terms.site}."):
            raise RolloutError(f"--canary {name}: expected a box of --site {terms.site}")
        if box.uses(content):
            raise RolloutError(f"--canary {name}: expected a box with another model, it uses this")

    def _moved(self, plan: RolloutPlan, stage: Stage, reason: str | None = None) -> RolloutPlan:
        because = "" if reason is None else f": {reason}"
        self._say(f"{_WORDS[stage]}{because}")
        changes = {"stage": stage, "reason": reason, "changed_ns": self._now_ns()}
        return plan.model_copy(update=changes)

    @staticmethod
    def _with(plan: RolloutPlan, key: str, progress: BoxProgress) -> RolloutPlan:
        return plan.model_copy(update={"boxes": {**plan.boxes, key: progress}})

    def _read(self) -> tuple[RolloutPlan | None, int]:
        entry = self._store.get(PLAN)
        if entry is None:
            return None, 0
        try:
            return RolloutPlan.decode(entry.value), entry.revision
        except WireError as error:
            raise NatsError(f"the roll-out in the bucket cannot be read: {error}") from error

    def _write(self, plan: RolloutPlan, revision: int) -> None:
        """Replace the plan, unless it is too large to be read back.

        Raises:
            NatsError: it is too large, or was changed by another process.
        """
        body = plan.encode()
        if len(body) > MAX_PLAN_BYTES:
            text = f"the roll-out of {len(plan.boxes)} boxes takes {len(body)} bytes"
            hint = "go site by site: --site, or return: ast-stream fleet rollout return"
            raise NatsError(f"{text}, expected at most {MAX_PLAN_BYTES}: {hint}")
        self._store.put(PLAN, body, revision)


_WORDS: dict[Stage, str] = {
    "canary": "the canary goes first",
    "others": "the canary was good: the others follow",
    "finishing": "all boxes that are there use it",
    "done": "done",
    "returning": "all return to what they had",
    "returned": "all have returned that are there",
}


def _as_wanted(entries: Iterable[BucketEntry]) -> dict[str, WantedModel]:
    """Return the wanted models; those that cannot be read are left out, and so rewritten."""
    found = {}
    for entry in entries:
        try:
            found[entry.key] = WantedModel.decode(entry.value)
        except WireError as error:
            logger.warning("what is wanted of %s cannot be read: %s", entry.key, error)
    return found


def _is_in(plan: RolloutPlan, key: str) -> bool:
    return plan.site is None or key.partition(".")[0] == plan.site


def _settled(progress: BoxProgress) -> BoxProgress:
    """Return the progress of a box that is no longer watched, shortened to bound the plan."""
    return BoxProgress(previous=progress.previous, in_use_ns=progress.in_use_ns)


def _hash(content: str | None) -> str | None:
    """Return the model that a box reports, if it is a valid content hash; None otherwise.

    An invalid report must not keep the other boxes from rolling back: this box then returns to the
    model that its configuration names.
    """
    return content if content is not None and HASH.match(content) else None


def _failed(progress: BoxProgress, reason: str) -> BoxProgress:
    return progress.model_copy(update={"failed": reason[:MAX_PROBLEM_CHARACTERS]})
