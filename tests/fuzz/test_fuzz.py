"""Every decoder of bytes from outside gives a value or a refusal in a sentence, whatever comes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fuzz.campaign import Campaign, Finding, kept_findings, shares
from fuzz.decoder import Decoder, outcome_of
from fuzz.everything import all_decoders

N_CASES = 3_000  # of all decoders together, a few seconds; `make fuzz` goes on
SEED = 1


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Decoder]]:
    found = {one.name: one for one in all_decoders(tmp_path_factory.mktemp("fuzz"))}
    yield found
    for decoder in found.values():
        decoder.close()


@pytest.mark.slow
def test_changed_bytes_are_taken_or_refused_in_a_sentence(decoders: dict[str, Decoder]) -> None:
    left = shares(list(decoders.values()), N_CASES)
    found: list[Finding] = []
    for name, decoder in decoders.items():
        campaign = Campaign(decoder, SEED)
        campaign.check_seeds()
        tally = campaign.run(left[name])
        assert tally.cases == tally.accepted + tally.refused + tally.n_findings
        found += tally.findings.values()
    shown = [f"{one.decoder}: {one.kind}\n{one.text}" for one in found]
    assert not shown, "\n\n".join(shown)


@pytest.mark.parametrize(
    "finding", [pytest.param(finding, id=path.stem) for path, finding in kept_findings()]
)
def test_what_was_found_once_does_not_come_back(
    decoders: dict[str, Decoder], finding: Finding
) -> None:
    assert outcome_of(decoders[finding.decoder], finding.case)


def test_an_error_that_is_not_for_people_is_a_finding() -> None:
    def decode(case: tuple[bytes, ...]) -> object:
        return [len(frame) // (len(frame) - 4) for frame in case]

    campaign = Campaign(Decoder("a faulty one", [(b"BCD",)], decode), SEED)
    campaign.check_seeds()
    tally = campaign.run_apart(300)
    assert "ZeroDivisionError in no code of ours" in tally.findings
    assert tally.cases == 300


def test_a_decoder_that_ends_its_process_is_a_finding() -> None:
    def decode(case: tuple[bytes, ...]) -> object:
        if case and b"AA" in case[0]:
            os.abort()
        return None

    campaign = Campaign(Decoder("a fatal one", [(b"xxxA",)], decode, tokens=[b"A"]), SEED)
    for _ in range(20):
        tally = campaign.run_apart(300)
        if tally.findings:
            break
    (finding,) = tally.findings.values()
    assert "ends the process" in finding.kind
    assert b"AA" in finding.case[0]
