"""The published AudioSet checkpoints: which of their 527 classes report, what short windows cost.

They come without thresholds, and nobody wants all of their classes as events: one barking dog is
Animal, Domestic animals, Dog, Bark and Bow-wow. What is reported where nobody has chosen is listed
here by what is left out; `docs/design/audioset.md` has the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ast_stream.model.dims import AstDims, default_window_s
from ast_stream.model.metadata import Metadata

N_CLASSES = 527


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(";"))


# of the room and the recording, and how something sounds whatever it is
NO_SOURCE = _names(
    """Silence; Sine wave; Harmonic; Chirp tone; Sound effect; Pulse; Inside, small room;
    Inside, large room or hall; Inside, public space; Outside, urban or manmade;
    Outside, rural or natural; Reverberation; Echo; Noise; Environmental noise; Static; Mains hum;
    Distortion; Sidetone; Cacophony; White noise; Pink noise; Throbbing; Vibration; Television;
    Radio; Field recording; Effects unit; Chorus effect; Electronic tuner;
    Wind noise (microphone); Whoosh, swoosh, swish; Thump, thud; Thunk; Bouncing; Flap; Scratch;
    Scrape; Rub; Roll; Crushing; Crumpling, crinkling; Tearing; Ping; Ding; Clang; Squeal; Squeak;
    Rustle; Whir; Clatter; Sizzle; Clicking; Clickety-clack; Rumble; Plop; Jingle, tinkle; Hum;
    Zing; Boing; Crunch; Slap, smack; Whack, thwack; Breaking; Burst, pop; Eruption; Boom; Crack;
    Splinter; Tap; Tick; Patter; Rattle; Buzz; Hiss; Shuffle; Slosh; Squish; Gush;
    Trickle, dribble; Gurgling; Arrow; Whip"""
)

# parents of other classes, and sources of sounds that have a name of their own (Dog: Bark)
PARENTS = _names(
    """Animal; Domestic animals, pets; Livestock, farm animals, working animals; Wild animals;
    Canidae, dogs, wolves; Roaring cats (lions, tigers); Rodents, rats, mice; Fowl; Dog; Cat;
    Horse; Cattle, bovinae; Pig; Goat; Sheep; Chicken, rooster; Turkey; Duck; Goose; Bird;
    Pigeon, dove; Crow; Owl; Mouse; Insect; Snake; Hands; Vehicle; Motor vehicle (road); Car;
    Boat, Water vehicle; Rail transport; Aircraft; Aircraft engine; Emergency vehicle; Bicycle;
    Door; Telephone; Clock; Mechanisms; Tools; Power tool; Wood; Glass; Liquid; Water; Ocean;
    Fill (with liquid); Pump (liquid)"""
)

# of a class that reports, in other words or in more detail
VARIANTS = _names(
    """Male speech, man speaking; Female speech, woman speaking; Child speech, kid speaking;
    Conversation; Narration, monologue; Speech synthesizer; Babbling; Bellow; Whoop; Yell;
    Battle cry; Children shouting; Giggle; Snicker; Belly laugh; Chuckle, chortle; Whimper;
    Wail, moan; Chatter; Hubbub, speech noise, speech babble; Choir; Yodeling; Chant; Mantra;
    Male singing; Female singing; Child singing; Synthetic singing; Rapping; Heart murmur; Yip;
    Bow-wow; Whimper (dog); Caterwaul; Bird vocalization, bird call, bird song; Croak; Thunder;
    Raindrop; Rain on surface; Toot; Police car (siren); Ambulance (siren);
    Fire engine, fire truck (siren); Railroad car, train wagon; Jet engine; Propeller, airscrew;
    Light engine (high frequency); Medium engine (mid frequency); Heavy engine (low frequency);
    Idling; Ding-dong; Typing; Single-lens reflex camera; Machine gun; Fusillade; Artillery fire;
    Cap gun; Firecracker"""
)

# kinds, instruments, roles and moods of Music
MUSIC = _names(
    """Musical instrument; Plucked string instrument; Guitar; Electric guitar; Bass guitar;
    Acoustic guitar; Steel guitar, slide guitar; Tapping (guitar technique); Strum; Banjo; Sitar;
    Mandolin; Zither; Ukulele; Keyboard (musical); Piano; Electric piano; Organ; Electronic organ;
    Hammond organ; Synthesizer; Sampler; Harpsichord; Percussion; Drum kit; Drum machine; Drum;
    Snare drum; Rimshot; Drum roll; Bass drum; Timpani; Tabla; Cymbal; Hi-hat; Wood block;
    Tambourine; Rattle (instrument); Maraca; Gong; Tubular bells; Mallet percussion;
    Marimba, xylophone; Glockenspiel; Vibraphone; Steelpan; Orchestra; Brass instrument;
    French horn; Trumpet; Trombone; Bowed string instrument; String section; Violin, fiddle;
    Pizzicato; Cello; Double bass; Wind instrument, woodwind instrument; Flute; Saxophone;
    Clarinet; Harp; Tuning fork; Change ringing (campanology); Harmonica; Accordion; Bagpipes;
    Didgeridoo; Shofar; Theremin; Singing bowl; Scratching (performance technique); Pop music;
    Hip hop music; Beatboxing; Rock music; Heavy metal; Punk rock; Grunge; Progressive rock;
    Rock and roll; Psychedelic rock; Rhythm and blues; Soul music; Reggae; Country; Swing music;
    Bluegrass; Funk; Folk music; Middle Eastern music; Jazz; Disco; Classical music; Opera;
    Electronic music; House music; Techno; Dubstep; Drum and bass; Electronica;
    Electronic dance music; Ambient music; Trance music; Music of Latin America; Salsa music;
    Flamenco; Blues; Music for children; New-age music; Vocal music; A capella; Music of Africa;
    Afrobeat; Christian music; Gospel music; Music of Asia; Carnatic music; Music of Bollywood;
    Ska; Traditional music; Independent music; Song; Background music; Theme music;
    Jingle (music); Soundtrack music; Lullaby; Video game music; Christmas music; Dance music;
    Wedding music; Happy music; Funny music; Sad music; Tender music; Exciting music; Angry music;
    Scary music"""
)

OFF = NO_SOURCE | PARENTS | VARIANTS | MUSIC


MAP_BY_WINDOW_S = {10.0: 45.9, 2.0: 39.7, 1.0: 36.6}  # per cent, as reported
SHORT_RATIO = 0.5  # of the trained window


def is_audioset(labels: Collection[str]) -> bool:
    """Return whether `labels` are those of AudioSet."""
    return len(labels) == N_CLASSES and set(labels) >= OFF


def with_audioset_defaults(metadata: Metadata, labels: Sequence[str]) -> Metadata:
    """Return `metadata` with the classes that are off by default.

    Nobody has if its file says nothing of `off` and of thresholds; of other labels than AudioSet's
    it stays as it is.
    """
    is_chosen = "off" in metadata.model_fields_set or metadata.onset_thresholds
    if is_chosen or not is_audioset(labels):
        return metadata
    return metadata.model_copy(update={"off": [label for label in labels if label in OFF]})


def window_remark(window_s: float, dims: AstDims, labels: Collection[str]) -> str | None:
    """Return a remark on the cost of a model's window length, or None if unknown.

    Args:
        window_s: of the windows in use.
        dims: as stored: its input is as long as the windows it was trained on.
    """
    trained_s = default_window_s(dims.max_frames)
    reported = ", ".join(f"{figure} at {at_s:g} s" for at_s, figure in MAP_BY_WINDOW_S.items())
    if window_s <= SHORT_RATIO * trained_s:
        return (
            f"windows of {window_s:g} s, where the checkpoint was trained on {trained_s:g} s: it "
            f"scores much worse (for AST on AudioSet a mAP of {reported} is reported)"
        )
    if is_audioset(labels):
        return f"shorter windows cost it much: a mAP of {reported} is reported"
    return None


def short_window_warning(window_s: float, dims: AstDims) -> str | None:
    """Return a warning about windows much shorter than those a model was trained on, or None."""
    return window_remark(window_s, dims, ())
