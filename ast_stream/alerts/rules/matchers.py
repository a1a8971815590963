"""From the `match` of a rule to matchers, every name resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ast_stream.alerts.rules.match import Matcher, UnknownName, Vocabulary, stream_conditions
from ast_stream.alerts.rules.problems import Notes
from ast_stream.alerts.rules.schema import EventMatch, Level, RuleSettings, SoundMatch
from ast_stream.settings.explain import Path as KeyPath


def compile_matchers(
    settings: RuleSettings, path: KeyPath, vocabulary: Vocabulary, notes: Notes
) -> tuple[Matcher, ...]:
    """Return the matcher of a rule, or of each of its steps; notes what is wrong."""
    if settings.sequence is not None:
        return tuple(
            _matcher(step.match, (*path, "sequence", "steps", index, "match"), vocabulary, notes)
            for index, step in enumerate(settings.sequence.steps)
        )
    if settings.absent is not None:
        return (_matcher(settings.absent.match, (*path, "absent", "match"), vocabulary, notes),)
    if isinstance(settings.level, Level):
        return (Matcher(streams=stream_conditions(settings.level.stream)),)
    if settings.match is None:
        return ()
    return (_matcher(settings.match, (*path, "match"), vocabulary, notes),)


def _matcher(given: EventMatch, path: KeyPath, vocabulary: Vocabulary, notes: Notes) -> Matcher:
    slugs = _slugs(given, path, vocabulary, notes)
    exceptions: tuple[Matcher, ...] = ()
    if given.not_ is not None:
        inner: KeyPath = (*path, "not")
        exceptions = (
            Matcher(
                _slugs(given.not_, inner, vocabulary, notes), stream_conditions(given.not_.stream)
            ),
        )
        if exceptions[0] == Matcher():
            notes.add(inner, "E101", "expected something that is not meant, got nothing")
    return Matcher(
        slugs=slugs,
        streams=stream_conditions(given.stream),
        min_score=0.0 if given.score is None else given.score.min,
        relatives=vocabulary.relatives(slugs) if given.under and slugs else {},
        exceptions=exceptions,
    )


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
                if not is_group_member:  # told where the group is written
                    notes.add((*path, key, index), code, str(error))
        chosen = frozenset(found) if chosen is None else chosen & found
    if chosen is not None and not chosen and len(notes.problems) == before:
        notes.add(path, "E105", "no class is in all of the keys given; of one key any will do")
    return chosen
