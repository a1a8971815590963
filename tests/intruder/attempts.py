"""What an intruder may try, what happens, and the tests that try it: the table of SECURITY.md."""

from __future__ import annotations

from typing import NamedTuple

_CURVE = "tests/unit/transport/test_curve.py"
_LISTENER = "tests/unit/transport/test_listener.py"
_KEYS = "tests/unit/transport/test_keys.py"
_QUERY = "tests/unit/transport/test_query.py"
_ADMIN = "tests/unit/alerts/test_administration.py"
_RING = "tests/unit/capture/test_ring.py"
_SENSOR = "tests/process/test_sensor.py"
_ACCESS = "tests/unit/privacy/test_access.py"
_SPEECH = "tests/unit/privacy/test_speech.py"
_AUDIT = "tests/unit/privacy/test_audit.py"
_LIFECYCLE = "tests/unit/runtime/test_lifecycle.py"
_SETTINGS = "tests/unit/settings/test_settings.py"
_OVER_TCP = "tests/process/test_keys_over_tcp.py"
_HOSTILE = "tests/process/test_hostile_peers.py"
_INTRUDER = "tests/intruder/test_intruder.py"
_FUZZ = "tests/fuzz/test_fuzz.py"
_PAGE = "tests/process/test_page_attacks.py"
_HEALTH = "tests/process/test_page_health.py"
_LOGINS = "tests/unit/web/test_logins.py"
_LIMITS = "tests/unit/web/test_login_limits.py"
_SESSIONS = "tests/unit/web/test_sessions.py"
_USERS = "tests/unit/privacy/test_page_users.py"
_FOLLOWER = "tests/unit/fleet/test_follower.py"
_MODELS = "tests/unit/fleet/test_model_folder.py"
_STORE = "tests/unit/fleet/test_buckets.py"
_CLOCK = "tests/unit/fleet/test_clock.py"
_ROLLOUT = "tests/unit/fleet/test_rollout.py"
_BUCKET = "tests/unit/pool/test_bucket.py"
_POOL_KEYS = "tests/unit/capture/test_pool_keys.py"
_RECORD = "tests/unit/worker/test_portable_record.py"
_SAMPLE_CLOCK = "tests/unit/test_sample_clock.py"
_FLEET_STATUS = "tests/unit/cli/test_fleet_status.py"
_WEB_SETTINGS = "tests/unit/settings/test_web_settings.py"


class Attempt(NamedTuple):
    """One attempt.

    Attributes:
        tried: what somebody does.
        happens: what follows.
        tests: that show it, as pytest names them.
    """

    tried: str
    happens: str
    tests: tuple[str, ...]


_BOXES = f"{_OVER_TCP}::test_boxes_meet_with_keys_and_each_has_only_its_rights"
_ATTACKED = f"{_HOSTILE}::test_attacked_sockets_cost_no_event_and_no_process"

ATTEMPTS = (
    Attempt(
        "no key: libzmq without CURVE, or hand-written bytes",
        "disconnected; nothing is received",
        (
            f"{_CURVE}::test_who_does_not_prove_an_allowed_key_gets_nothing_in",
            f"{_CURVE}::test_a_stranger_that_speaks_without_a_key_is_cut_off",
        ),
    ),
    Attempt(
        "a key that is not on the list",
        "disconnected during the handshake; the worker logs the public key",
        (
            f"{_CURVE}::test_who_does_not_prove_an_allowed_key_gets_nothing_in",
            f"{_CURVE}::test_a_refused_client_recovers_once_it_is_allowed",
            _BOXES,
        ),
    ),
    Attempt(
        "another client's public key, without its secret key",
        "disconnected: the client cannot prove the key",
        (f"{_CURVE}::test_who_does_not_prove_an_allowed_key_gets_nothing_in",),
    ),
    Attempt(
        "another server impersonates the worker",
        "the client refuses it",
        (f"{_CURVE}::test_who_does_not_prove_an_allowed_key_gets_nothing_in",),
    ),
    Attempt(
        "a revoked key is used",
        "disconnected within two seconds, and refused until it is allowed again",
        (f"{_CURVE}::test_a_revoked_key_is_disconnected_and_stays_out", _BOXES),
    ),
    Attempt(
        "an allowed key sends audio of a stream that it may not push",
        "dropped, counted and logged; its own streams continue",
        (
            f"{_CURVE}::test_an_allowed_key_sends_the_audio_of_its_own_streams_and_of_no_other",
            _BOXES,
        ),
    ),
    Attempt(
        "an allowed key names another box's ring, or ends a stream that is not its own",
        "refused: the worker connects only to `ring.STREAM.sock` in its own folder, and only that "
        "ring can end its stream",
        (_ATTACKED,),
    ),
    Attempt(
        "an allowed key subscribes to everything, including what it has no right to",
        "no scores are sent without `scores`, no spectrograms without `audio`, nothing else "
        "without `feed`; nor is any of it computed for that key",
        (
            f"{_CURVE}::test_scores_are_for_those_with_the_right_to_them",
            f"{_CURVE}::test_spectrograms_are_for_those_who_may_listen",
            f"{_CURVE}::test_who_has_no_right_to_a_topic_is_no_reader_of_it",
        ),
    ),
    Attempt(
        "an allowed key without `audio` asks for audio",
        "answered with an error",
        (f"{_QUERY}::test_a_query_needs_the_right_to_what_it_asks_for", _BOXES),
    ),
    Attempt(
        "an allowed key without `admin`, or a member of the group over ipc, acknowledges an alert",
        "answered with an error; nothing has changed",
        (
            f"{_ADMIN}::test_nobody_administrates_without_the_right",
            f"{_ADMIN}::test_members_of_the_group_do_not_administrate_over_ipc",
            f"{_ADMIN}::test_over_tcp_a_key_needs_the_right",
        ),
    ),
    Attempt(
        "a member of the group asks for audio over ipc",
        "answered with an error; replay is still answered",
        (f"{_QUERY}::test_members_of_the_group_read_events_and_never_listen",),
    ),
    Attempt(
        "a process of another user reads a ring",
        "`not_allowed`; only an empty range, which returns the state of the stream, is answered",
        (f"{_RING}::test_only_the_client_that_reads_the_ring_acknowledges_while_it_is_connected",),
    ),
    Attempt(
        "a process of another user sends audio over ipc",
        "disconnected",
        (f"{_QUERY}::test_audio_of_another_user_is_not_received_over_ipc",),
    ),
    Attempt(
        "recorded messages are replayed, or one bit is flipped",
        "disconnected; nothing is received",
        (f"{_CURVE}::test_what_is_sent_cannot_be_read_altered_or_sent_again",),
    ),
    Attempt(
        "handshakes with random bytes, or out of order",
        "disconnected; at most 4 kB are buffered",
        (
            f"{_CURVE}::test_no_bytes_of_a_stranger_do_more_than_end_the_connection",
            f"{_CURVE}::test_a_handshake_out_of_order_is_refused",
        ),
    ),
    Attempt(
        "a frame of 400 kB, a message of nine parts, a subscription of 1 kB, two thousand "
        "subscriptions",
        "disconnected at the limit, before all of it has arrived; others are not affected",
        (
            f"{_CURVE}::test_a_message_beyond_the_limit_ends_the_connection_of_its_sender_alone",
            f"{_LISTENER}::test_peer_that_goes_beyond_a_limit_is_disconnected_and_no_other",
        ),
    ),
    Attempt(
        "a million tiny messages from eight clients at the same time",
        "they queue at the limit of each client; well-behaved clients lose nothing; memory does "
        "not grow",
        (f"{_INTRUDER}::test_a_flood_of_tiny_messages_costs_others_nothing",),
    ),
    Attempt(
        "heartbeats or requests whose replies are not read",
        "the client is disconnected, or its requests wait; others are answered",
        (
            f"{_CURVE}::test_heartbeats_of_a_client_are_answered",
            f"{_LISTENER}::test_requests_of_a_client_that_reads_no_answers_wait_and_others_are_"
            "answered",
            f"{_QUERY}::test_a_client_that_never_reads_does_not_stop_the_others",
        ),
    ),
    Attempt(
        "a thousand connections, or connections that send nothing",
        "only the client that leaks connections loses any; a handshake may take ten seconds",
        (
            f"{_LISTENER}::test_leaked_connections_cost_only_who_leaks_them",
            f"{_LISTENER}::test_subscriber_finds_room_while_another_process_leaks_subscribers",
            _ATTACKED,
        ),
    ),
    Attempt(
        "audio of two hundred unconfigured streams",
        "`model.max_streams` are accepted, the others refused; the existing stream continues",
        (f"{_INTRUDER}::test_more_streams_than_there_is_room_for_cost_the_others_nothing",),
    ),
    Attempt(
        "queries for an hour of audio, for everything ever published, for an empty span",
        "an error, or a page of at most 1000 messages and 1 MiB",
        (
            f"{_QUERY}::test_impossible_audio_is_refused",
            f"{_INTRUDER}::test_no_query_gets_more_than_a_page",
        ),
    ),
    Attempt(
        "`../`, `/etc/…`, NUL and line breaks in names that become paths: streams, keys, parts of "
        "checkpoints",
        "refused; nothing is read or written there",
        (f"{_INTRUDER}::test_names_do_not_lead_out_of_their_folder",),
    ),
    Attempt(
        "a checkpoint, or a training state, whose pickle runs a command",
        "refused; the command does not run",
        (f"{_INTRUDER}::test_no_file_of_a_checkpoint_runs_a_command",),
    ),
    Attempt(
        "the allow-list is damaged, or writable by anybody",
        "the last valid list stays in force; at start-up the worker refuses to run",
        (
            f"{_CURVE}::test_damage_to_the_allow_list_leaves_the_last_good_one_in_force",
            f"{_CURVE}::test_allow_list_that_becomes_writable_for_everybody_is_followed_no_longer",
            f"{_KEYS}::test_an_allow_list_that_everybody_may_write_is_refused",
        ),
    ),
    Attempt(
        "the allow-list is removed",
        "everybody is disconnected",
        (f"{_CURVE}::test_damage_to_the_allow_list_leaves_the_last_good_one_in_force",),
    ),
    Attempt(
        "an allow-list without any rights, or without any keys",
        "nobody is admitted",
        (f"{_KEYS}::test_a_damaged_allow_list_lets_nobody_in",),
    ),
    Attempt(
        "`privacy: sensor`: queries for audio as its own user, as root and as another user, by "
        "sample and by time",
        "everybody gets the same refusal; the attempt is recorded",
        (
            f"{_SENSOR}::test_no_query_gets_audio_from_a_sensor",
            f"{_SENSOR}::test_another_user_gets_no_audio_from_a_sensor",
            f"{_ACCESS}::test_a_sensor_refuses_everybody_in_the_same_words",
        ),
    ),
    Attempt(
        "`privacy: sensor`: the ring is read as its own user, as root and as another user",
        "`not_allowed` for all but the worker process",
        (
            f"{_SENSOR}::test_the_ring_of_a_sensor_is_for_the_worker_alone",
            f"{_SENSOR}::test_another_user_gets_no_audio_from_a_sensor",
        ),
    ),
    Attempt(
        "`privacy: sensor`: a known sound is searched for (samples, base64, correlation) in the "
        "feed, all replies and every file",
        "not found",
        (
            f"{_SENSOR}::test_the_feed_of_a_sensor_holds_no_sound",
            f"{_SENSOR}::test_no_other_answer_of_a_sensor_holds_sound",
            f"{_SENSOR}::test_no_file_of_a_sensor_holds_sound",
        ),
    ),
    Attempt(
        "`privacy: sensor`: core dumps, and memory read by a process of the same user",
        "no dump is written; the kernel denies access",
        (
            f"{_SENSOR}::test_the_memory_of_a_sensor_is_never_dumped",
            f"{_LIFECYCLE}::test_private_memory_is_neither_dumped_nor_open_to_processes_of_the_"
            "same_user",
        ),
    ),
    Attempt(
        "settings that would still give access to audio",
        "errors at load",
        (f"{_SETTINGS}::test_mistake_is_reported_with_its_line_and_path",),
    ),
    Attempt(
        "`privacy: speech`: many small ranges around speech",
        "they reveal no more than one large range",
        (f"{_SPEECH}::test_no_choice_of_ranges_gets_more",),
    ),
    Attempt(
        "the audit log is flooded, or its disk is full",
        "repeats are logged once a minute; no audio is returned without a record",
        (
            f"{_AUDIT}::test_repeats_are_one_line_a_minute_that_counts_them",
            f"{_AUDIT}::test_audio_whose_access_cannot_be_recorded_is_not_handed_out",
        ),
    ),
    Attempt(
        "the page: every route and WebSocket, with a login that lacks the scope and without a "
        "login",
        "a refusal, or the login page; a route that declares no scope keeps the page from starting",
        (
            f"{_PAGE}::test_every_route_is_closed_to_whoever_lacks_its_right",
            f"{_PAGE}::test_every_route_is_open_to_whoever_has_its_right",
            f"{_PAGE}::test_a_route_without_a_declared_right_keeps_the_page_from_starting",
            f"{_HEALTH}::test_who_may_only_view_is_offered_nothing_and_can_do_nothing",
        ),
    ),
    Attempt(
        "the page: forms and WebSockets of other sites (missing, hidden, foreign or almost "
        "correct `Origin`), tokens of other sessions or from before the login",
        "403; nothing has changed",
        (
            f"{_PAGE}::test_requests_of_other_pages_change_nothing",
            f"{_PAGE}::test_tokens_of_others_are_worth_nothing",
            f"{_PAGE}::test_web_sockets_are_for_our_own_pages",
        ),
    ),
    Attempt(
        "the page on loopback under a foreign name (DNS rebinding), or with two `Host` headers",
        "421 or 400, before any route sees it",
        (
            f"{_PAGE}::test_the_page_answers_under_its_own_names_alone",
            f"{_PAGE}::test_a_request_with_two_hosts_or_none_is_refused",
        ),
    ),
    Attempt(
        "the page: session fixation, two cookies with the same name, the cookie of a session that "
        "has ended",
        "each login creates a new secret; all others are worthless",
        (
            f"{_PAGE}::test_a_planted_login_is_not_taken_over",
            f"{_PAGE}::test_of_two_cookies_of_one_name_none_counts",
            f"{_PAGE}::test_a_new_login_ends_the_one_before_and_a_logout_every_use_of_it",
            f"{_SESSIONS}::test_a_login_is_over_after_its_time_however_much_it_is_used",
        ),
    ),
    Attempt(
        "the page: 10 000 passwords for one name, for many names, and from many addresses",
        "at most 5 are checked per name and address, 20 per address, 50 per name and 100 in "
        "total, then only as many as the rate limits allow; memory is bounded; existing sessions "
        "continue",
        (
            f"{_LIMITS}::test_ten_thousand_passwords_for_one_name_are_a_handful",
            f"{_LIMITS}::test_names_tried_from_one_address_are_limited_together",
            f"{_LIMITS}::test_one_name_tried_from_many_addresses_is_limited_together",
            f"{_LIMITS}::test_many_names_from_many_addresses_are_limited_together",
            f"{_LIMITS}::test_memory_stays_bounded_however_long_it_is_tried",
            f"{_PAGE}::test_bad_passwords_are_limited_and_another_address_is_not",
        ),
    ),
    Attempt(
        "the page: finding out whether a name exists from the duration or the text of the reply",
        "the same reply, after one argon2 hash with the same parameters",
        (f"{_LOGINS}::test_an_unknown_name_costs_the_same_work_and_gets_the_same_answer",),
    ),
    Attempt(
        "the page: a user with an open live view is removed, or gets another password or fewer "
        "scopes",
        "logged out within a second; open connections are closed before the next message",
        (
            f"{_PAGE}::test_who_is_removed_or_has_another_password_is_out",
            f"{_PAGE}::test_a_live_view_ends_with_the_rights_of_who_watches",
        ),
    ),
    Attempt(
        "the page: `..`, `%2e%2e`, `%2f`, NUL, backslashes and long names in paths of clips, "
        "events and files",
        "400 or 404: clips are looked up by event id, and only files of the package are served",
        (f"{_PAGE}::test_path_tricks_reach_no_file",),
    ),
    Attempt(
        "the page: bodies and headers that are too long, endless, slow or of contradictory "
        "lengths; browsers that do not read",
        "413, 400 or disconnected, beyond 64 KiB and 20 s for a body, 32 KiB and 10 s for "
        "headers, 30 s without reading",
        (
            f"{_PAGE}::test_bodies_are_bounded",
            f"{_PAGE}::test_a_head_is_bounded",
            f"{_PAGE}::test_who_is_too_slow_is_disconnected",
        ),
    ),
    Attempt(
        "the page behind a proxy: the user header without the proxy's secret, twice, or with an "
        "unknown name",
        "403: no address is trusted",
        (f"{_PAGE}::test_what_a_proxy_says_counts_with_its_secret_alone",),
    ),
    Attempt(
        "the page: foreign scripts, framing, open redirects after the login, links that inject "
        "text",
        "every reply has a policy without inline scripts; such links lead to the start page, such "
        "text is not shown",
        (
            f"{_PAGE}::test_every_answer_carries_the_policy",
            f"{_PAGE}::test_pages_hold_no_script_or_style_of_their_own",
            f"{_LOGINS}::test_a_login_leads_to_no_page_of_others",
            f"{_HEALTH}::test_a_link_of_others_puts_no_words_on_the_page",
        ),
    ),
    Attempt(
        "the page with `privacy: sensor`: a clip that is still in the folder",
        "no route serves it",
        (f"{_PAGE}::test_a_sensor_has_no_route_to_sound",),
    ),
    Attempt(
        "a clip is played or refused; an alert is acknowledged, snoozed, retried or dropped",
        "a line in the audit log before it happens",
        (
            f"{_PAGE}::test_each_clip_that_is_played_or_refused_is_a_line",
            f"{_HEALTH}::test_a_delivery_that_was_given_up_is_shown_and_retried",
        ),
    ),
    Attempt(
        "the page beyond loopback without TLS, or a user file that others may read",
        "refused at load or at start-up",
        (
            f"{_WEB_SETTINGS}::test_settings_that_are_not_safe_are_refused",
            f"{_USERS}::test_a_file_that_cannot_be_trusted_is_refused",
        ),
    ),
    Attempt(
        "a box writes a model, or the model wanted of other boxes, at the centre",
        "refused by the permissions in the how-to; nothing has changed",
        (f"{_STORE}::test_a_box_may_read_what_it_needs_and_write_nothing_of_it",),
    ),
    Attempt(
        "a user who may write there offers another model, a damaged one, one that contains code, "
        "or files with path traversal in their names",
        "refused before anything is loaded, or written outside its folder; the box keeps its model",
        (
            f"{_FOLLOWER}::test_a_damaged_object_is_never_used",
            f"{_FOLLOWER}::test_weights_that_can_hold_programs_are_refused",
            f"{_MODELS}::test_names_that_lead_elsewhere_are_refused",
            f"{_MODELS}::test_a_manifest_that_is_not_the_one_asked_for_is_refused",
        ),
    ),
    Attempt(
        "the links to models point elsewhere",
        "they are ignored: the model named in the configuration is used",
        (f"{_MODELS}::test_links_that_are_none_of_ours_choose_nothing",),
    ),
    Attempt(
        "a box reports a made-up previous model, or thousands of problems, during a roll-out",
        "it rolls back to the model in its configuration, and all others roll back as usual; the "
        "plan stays small, and an unreadable plan is never written",
        (
            f"{_ROLLOUT}::test_a_box_that_makes_up_what_it_used_keeps_no_other_from_returning",
            f"{_ROLLOUT}::test_a_plan_that_nobody_could_read_again_is_not_written",
            f"{_ROLLOUT}::test_problems_of_a_box_take_little_room_in_the_plan",
        ),
    ),
    Attempt(
        "a user who may write the bucket of a pool writes members with invalid names, garbage, or "
        "megabytes",
        "they are ignored; no worker is hidden, and every capture process can still connect",
        (f"{_BUCKET}::test_what_no_worker_writes_among_the_members_hides_none_of_them",),
    ),
    Attempt(
        "fake members with the public key of a worker: on an ipc socket, at an invalid address, "
        "or with all the weight and another model",
        "refused, skipped, or left after 20 s for a worker that answers: they get no audio, and "
        "no recording ends",
        (
            f"{_POOL_KEYS}::test_a_member_is_reached_by_tcp_at_a_name_that_can_be_one",
            f"{_POOL_KEYS}::test_a_worker_that_cannot_be_connected_to_is_passed_over",
            f"{_BUCKET}::test_a_member_with_all_the_weight_that_nobody_reaches_keeps_no_stream",
        ),
    ),
    Attempt(
        "a capture box sends a worker forged records: compression bombs, records of other "
        "streams, impossible positions, times and onsets",
        "refused, or only the streams of that box have wrong times; the worker continues",
        (
            f"{_RECORD}::test_a_damaged_record_is_refused",
            f"{_RECORD}::test_a_record_of_an_onset_that_no_sound_has_is_refused",
            f"{_SAMPLE_CLOCK}::test_samples_however_far_away_have_a_time_that_can_be_written",
        ),
    ),
    Attempt(
        "a box reports under another box's key, or sends malformed reports, absurd numbers, or "
        "terminal control characters",
        "shown as unreadable under its own key, at the top of the list; control characters are "
        "printed as text",
        (
            f"{_FLEET_STATUS}::test_boxes_that_need_somebody_come_first",
            f"{_ROLLOUT}::test_figures_that_nobody_can_reckon_with_are_no_report",
        ),
    ),
    Attempt(
        "an off-path attacker answers for the time server",
        "the reply is dropped; an on-path attacker is believed, which is harmless because no "
        "clock is set",
        (f"{_CLOCK}::test_answers_that_say_nothing_are_refused",),
    ),
    Attempt(
        "damaged bytes for every decoder: messages, handshakes, YAML, checkpoints, recordings …",
        "a value or an error message; see `make fuzz`",
        (
            f"{_FUZZ}::test_changed_bytes_are_taken_or_refused_in_a_sentence",
            f"{_FUZZ}::test_what_was_found_once_does_not_come_back",
        ),
    ),
)


def rows() -> str:
    """Return the rows of the table in SECURITY.md."""
    lines = []
    for attempt in ATTEMPTS:
        files = dict.fromkeys(test.partition("::")[0].rpartition("/")[2] for test in attempt.tests)
        shown = ", ".join(f"`{file}`" for file in files)
        lines.append(f"| {attempt.tried} | {attempt.happens} | {shown} |\n")
    return "".join(lines)
