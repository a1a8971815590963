"""Texts of alerts: what fills them is inert, whatever it is."""
# ruff: noqa: RUF001 - look-alikes are what is tested

from __future__ import annotations

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.alerts.rules.templates import ABSENT, FIELDS, MAX_TEXT, MAX_VALUE, Template, inert

TEMPLATE = Template.parse("on {{ stream.labels.room }}!")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<script>alert(1)</script>", "‹script›alert(1)‹/script›"),
        ("<!channel> &lt;b&gt;", "‹!channel› +lt;b+gt;"),
        ("**bold** _it_ `code`", "∗∗bold∗∗ ˍitˍ ’code’"),
        ("[click](http://evil.test)", "❲click❳(http∶//evil.test)"),
        ("say \"yes\" or 'no'", "say ”yes” or ’no’"),
        ("a\nb\r\nc\td\x00e\x1b[31mf", "a b  c d e ❲31mf"),
        ("ab\u202egpj.exe\u200b\u2066", "abgpj.exe"),
        ("line\u2028separator\u2029s", "line separator s"),
        ("@everyone #general", "(at)everyone ♯general"),
        ("{{ alert }} {% x %}", "❴❴ alert ❵❵ ❴% x %❵"),
        ("\\ | ~", "∖ ∣ ∼"),
        ("Baby cry, infant cry", "Baby cry, infant cry"),
        ("Größe 3 µm, 日本", "Größe 3 µm, 日本"),
    ],
)
def test_values_come_out_inert(value: str, shown: str) -> None:
    assert TEMPLATE.render({"stream.labels.room": value}) == f"on {shown}!"


@pytest.mark.slow
@given(st.text(max_size=300))
def test_no_value_has_markup_controls_or_too_many_characters(value: str) -> None:
    shown = inert(value)
    assert html.escape(shown) == shown
    assert not set(shown) & set("<>&\"'`*_[]{}\\|~#@\n\r\t")
    assert "://" not in shown
    assert all(
        unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Co") for character in shown
    )
    assert len(shown) <= MAX_VALUE
    assert inert(shown) == shown


@given(st.text(alphabet="<>&*_`|{}[]#@:/ab", max_size=40))
def test_no_value_comes_back_to_life_by_normalisation(value: str) -> None:
    for form in ("NFC", "NFKC", "NFKD"):
        assert not set(unicodedata.normalize(form, inert(value))) & set("<>&*_`|{}[]#@")


def test_text_is_cut_at_its_limit() -> None:
    long = Template.parse("x" * 990 + "{{ stream.name }}")
    text = long.render({"stream.name": "y" * 500})
    assert len(text) == MAX_TEXT
    assert text.endswith("…")
    assert len(TEMPLATE.render({"stream.labels.room": "y" * 500})) == len("on !") + MAX_VALUE


def test_missing_and_empty_values_are_shown_as_such() -> None:
    assert TEMPLATE.render({}) == TEMPLATE.render({"stream.labels.room": ""}) == f"on {ABSENT}!"


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("{{ active_s }}", 12.5, "12.5"),
        ("{{ active_s | int }}", 12.9, "12"),
        ("{{active_s|int}}", 3, "3"),
        ("{{ active_s }}", 0.0, "0"),
    ],
)
def test_numbers_are_shown_plainly(text: str, value: float, shown: str) -> None:
    assert Template.parse(text).render({"active_s": value}) == shown


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_known(field: str) -> None:
    assert Template.parse("{{ " + field + " }}").render({field: "x"}) == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ nme }}", "unknown field 'nme'"),
        ("{{ labels. }}", "expected the name of a label after 'labels.', got 'labels.'"),
        ("{{ labels.a.b }}", "expected the name of a label"),
        ("{{ score | round }}", "unknown filter 'round'; expected int or none"),
        ("{{ score", "expected fields as {{ name }}"),
        ("at {{ score }, once more and again", "got '{{ score }, once more and agai...'"),
        ("at {% if score %}", "got '{% if score %}'"),
        ("}} score", "expected fields as {{ name }}"),
        ("{{ {score} }}", "expected fields as {{ name }}"),
        ("{{}}", "unknown field ''"),
        ("bell \x07", r"expected readable text, got the character U\+0007"),
        ("hidden \u202e", r"expected readable text, got the character U\+202E"),
    ],
)
def test_unusable_templates_are_refused_when_they_are_loaded(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Template.parse(text)
