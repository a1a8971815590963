"""Which events a rule is about: classes by label, own groups or ontology branches, and streams.

AudioSet's ontology is a graph, not a tree: Growling lies under Dog, Cat and more. A branch holds
every class that can be reached from its node, and the node itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from ast_stream.alerts.rules.field_types import Names, RuleSection
from ast_stream.alerts.rules.problems import Notes
from ast_stream.labels import did_you_mean, find_label, slug
from ast_stream.settings.explain import Path as KeyPath


class SoundMatch(RuleSection):
    """Which sounds on which streams; all keys given must hold, of a list any."""

    class_: Names | None = Field(default=None, alias="class", description="label or its slug")
    any_of: Names | None = Field(default=None, description="as `class`")
    group: Names | None = Field(default=None, description="of `classes` in this file")
    under: Names | None = Field(default=None, description="branches of the ontology")
    stream: dict[str, Names] = Field(
        default_factory=dict, description="by `id` (the stream's name) and by labels"
    )


class ScoreMatch(RuleSection):
    """Bounds of the score so far."""

    min: float = Field(ge=0, le=1, description="the highest score so far must reach this")


class EventMatch(SoundMatch):
    """Which events."""

    score: ScoreMatch | None = Field(default=None, description="bounds of the score")
    watcher_score: ScoreMatch | None = Field(
        default=None,
        description="of a cascade's small model; an event without its score does not match",
    )
    verifier_score: ScoreMatch | None = Field(
        default=None,
        description="of the verifier of its class; an event without its score does not match",
    )
    not_: SoundMatch | None = Field(default=None, alias="not", description="but not these")


class UnknownName(ValueError):
    """A class, group or branch that does not exist; reads as a sentence."""


@dataclass(frozen=True)
class Ontology:
    """Names of sounds, and the branches of the ontology.

    Attributes:
        children: names of the direct children, by name.
    """

    children: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Ontology:
        """Return the ontology in JSON as AudioSet publishes it: a list of id, name, child_ids.

        Raises:
            ValueError: it is not that.
        """
        try:
            nodes = json.loads(text)
            names = {str(node["id"]): str(node["name"]) for node in nodes}
            children = {
                names[str(node["id"])]: tuple(names[child] for child in node.get("child_ids", []))
                for node in nodes
            }
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"expected a list of nodes with id, name and child_ids as in AudioSet's "
                f"ontology.json: {type(error).__name__} {error}"
            ) from error
        return cls(children)

    def under(self, name: str) -> frozenset[str]:
        """Return the names reachable from `name`, itself included; loops do no harm."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += self.children[current]
        return frozenset(found)

    def branch(self, path: str) -> frozenset[str]:
        """Return the names under `A > B > C`, where each is a descendant of the one before.

        Raises:
            UnknownName: a name that is not there, or does not lie under the one before.
        """
        by_folded = {name.casefold(): name for name in self.children}
        names: list[str] = []
        for part in (part.strip() for part in path.split(">")):
            name = by_folded.get(part.casefold())
            if name is None:
                near = did_you_mean(part, self.children)
                raise UnknownName(f"the ontology has no '{part}'{near}")
            if names and name not in self.under(names[-1]):
                raise UnknownName(f"'{name}' does not lie under '{names[-1]}' in the ontology")
            names.append(name)
        return self.under(names[-1])

    def parents(self, name: str) -> list[str]:
        """Return the names of which `name` is a direct child."""
        return [parent for parent, children in self.children.items() if name in children]


@dataclass(frozen=True)
class Vocabulary:
    """The known classes; without `labels`, every class is accepted.

    Attributes:
        labels: of the model; None: not known.
        groups: the user's class groups.
    """

    labels: tuple[str, ...] | None = None
    ontology: Ontology | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def class_named(self, name: str) -> frozenset[str]:
        """Return the slug of the class with this label or slug, alone in a set.

        Raises:
            UnknownName: the model has none.
        """
        if self.labels is not None and find_label(name, self.labels) is None:
            slugs = {slug(label) for label in self.labels}
            near = did_you_mean(name, [*slugs, *self.labels]) or self._containing(name)
            raise UnknownName(f"the model has no class '{name}'{near}")
        return frozenset({slug(name)})

    def _containing(self, name: str) -> str:
        """Return a hint at labels that `name` is a part of, as of "Baby cry, infant cry"."""
        found = [label for label in self.labels or () if name.casefold() in label.casefold()]
        return f"; did you mean {' or '.join(repr(label) for label in found[:3])}?" if found else ""

    def group_named(self, name: str) -> frozenset[str]:
        """Return the slugs of a class group.

        Raises:
            UnknownName: there is no such group, or it names an unknown class.
        """
        if name not in self.groups:
            near = did_you_mean(name, self.groups)
            raise UnknownName(f"there is no class group '{name}' under 'classes'{near}")
        return frozenset().union(*(self.class_named(label) for label in self.groups[name]))

    def branch_named(self, path: str) -> frozenset[str]:
        """Return the slugs of the model's classes in a branch.

        Raises:
            UnknownName: no ontology, an unknown branch, or none of the model's classes in it.
        """
        if self.ontology is None:
            raise UnknownName(
                f"'{path}' is a branch, which needs 'ontology: FILE' (AudioSet's ontology.json) "
                "at the top of this file"
            )
        names = self.ontology.branch(path)
        slugs = {slug(name) for name in names}
        if self.labels is not None:
            slugs &= {slug(label) for label in self.labels}
        if not slugs:
            raise UnknownName(f"the model has no class under '{path}'")
        return frozenset(slugs)

    def relatives(self, slugs: frozenset[str]) -> dict[str, frozenset[str]]:
        """Return, for each of some classes, those of them above or below it in the ontology."""
        if self.ontology is None:
            return {}
        names = {slug(name): name for name in self.ontology.children}
        below = {
            slug_: {slug(name) for name in self.ontology.under(names[slug_])} & slugs - {slug_}
            for slug_ in slugs
            if slug_ in names
        }
        return {
            slug_: frozenset(under | {other for other in below if slug_ in below[other]})
            for slug_, under in below.items()
        }


@dataclass(frozen=True)
class Matcher:
    """What an event must be; the caller compares the scores.

    Attributes:
        slugs: classes; None: any.
        streams: for each of `id` and label names, the values allowed.
        min_score: highest score so far from which the event counts.
        min_watcher_score: the same of the small model of a cascade; None: whatever it says.
        min_verifier_score: from which score of its verifier on it counts; None: whatever it says.
        relatives: classes that one sound raises together, see `Vocabulary.relatives`.
        exceptions: what must not match.
    """

    slugs: frozenset[str] | None = None
    streams: tuple[tuple[str, frozenset[str]], ...] = ()
    min_score: float = 0.0
    min_watcher_score: float | None = None
    min_verifier_score: float | None = None
    relatives: Mapping[str, frozenset[str]] = field(default_factory=dict)
    exceptions: tuple[Matcher, ...] = ()

    def is_reached_by(
        self, peak: float, watcher_peak: float | None, verifier_score: float | None
    ) -> bool:
        """Return whether the highest scores of an event so far, of all opinions, are enough."""
        return (
            peak >= self.min_score
            and _is_enough(watcher_peak, self.min_watcher_score)
            and _is_enough(verifier_score, self.min_verifier_score)
        )

    def covers_stream(self, stream: str, labels: Mapping[str, str]) -> bool:
        """Return whether a stream with these labels is meant."""
        return all(
            (stream if key == "id" else labels.get(key)) in values for key, values in self.streams
        )

    def covers(self, class_slug: str, stream: str, labels: Mapping[str, str]) -> bool:
        """Return whether an event of this class on this stream is meant, whatever its score."""
        if self.slugs is not None and class_slug not in self.slugs:
            return False
        if not self.covers_stream(stream, labels):
            return False
        return not any(other.covers(class_slug, stream, labels) for other in self.exceptions)

    @property
    def named_streams(self) -> frozenset[str] | None:
        """The streams named by `id`, None if only labels or nothing say which."""
        return next((values for key, values in self.streams if key == "id"), None)


def _is_enough(score: float | None, wanted: float | None) -> bool:
    return wanted is None or (score is not None and score >= wanted)


def compile_match(
    given: EventMatch, path: KeyPath, vocabulary: Vocabulary, notes: Notes
) -> Matcher:
    """Return the matcher of a match in a rule; problems go to the notes."""
    matcher = _sounds(given, path, vocabulary, notes)
    exceptions: tuple[Matcher, ...] = ()
    if given.not_ is not None:
        exceptions = (_sounds(given.not_, (*path, "not"), vocabulary, notes),)
        if exceptions[0] == Matcher():
            text = "expected something that is not meant, got nothing"
            notes.add((*path, "not"), "E101", text)
    return replace(
        matcher,
        min_score=0.0 if given.score is None else given.score.min,
        min_watcher_score=None if given.watcher_score is None else given.watcher_score.min,
        min_verifier_score=None if given.verifier_score is None else given.verifier_score.min,
        relatives=vocabulary.relatives(matcher.slugs) if given.under and matcher.slugs else {},
        exceptions=exceptions,
    )


def _sounds(given: SoundMatch, path: KeyPath, vocabulary: Vocabulary, notes: Notes) -> Matcher:
    streams = tuple((key, frozenset(values)) for key, values in given.stream.items())
    return Matcher(_slugs(given, path, vocabulary, notes), streams)


def _slugs(
    given: SoundMatch, path: KeyPath, vocabulary: Vocabulary, notes: Notes
) -> frozenset[str] | None:
    """Return the classes that hold for every key given; None: any."""
    sources: tuple[tuple[str, Sequence[str] | None, str, Callable[[str], frozenset[str]]], ...] = (
        ("class", given.class_, "E105", vocabulary.class_named),
        ("any_of", given.any_of, "E105", vocabulary.class_named),
        ("group", given.group, "E106", vocabulary.group_named),
        ("under", given.under, "E106", vocabulary.branch_named),
    )
    chosen: frozenset[str] | None = None
    before = len(notes.problems)
    for key, names, code, resolve in sources:
        if names is None:
            continue
        found: set[str] = set()
        for index, name in enumerate(names):
            try:
                found |= resolve(name)
            except UnknownName as error:
                is_group_member = key == "group" and name in vocabulary.groups
                if not is_group_member:  # reported where the group is written
                    notes.add((*path, key, index), code, str(error))
        chosen = frozenset(found) if chosen is None else chosen & found
    if chosen is not None and not chosen and len(notes.problems) == before:
        notes.add(path, "E105", "no class is in all of the keys given; of one key any will do")
    return chosen
