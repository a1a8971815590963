"""The forwarder as a process, with a real server: nothing is missing, whatever is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forward_stops
import forwarder_kills
import pytest
from certificates import Authority
from forward_box import PATIENCE_S, ForwardBox, forward_box, nats_output, once, wait_until
from nats_server import NatsServer, Stored, ask, count, nats_server, needs_nats, status_of, stored
from ports import free_ports

from ast_stream.cli.app import run_command_line
from ast_stream.feed import Subscriber
from ast_stream.messages.status import ForwardStatus

pytestmark = [needs_nats, pytest.mark.slow]


def keys_of(
    found: list[Stored], kinds: tuple[str, ...] = ("event", "gap")
) -> list[tuple[str, str]]:
    return [one.key for one in found if one.body["type"].split(".")[2] in kinds]


def wait_for_all(box: ForwardBox, output: str = "centre") -> None:
    def is_behind() -> bool:
        found: dict[str, Any] = box.position(output).get("sources", {})
        return found.get("feed") == list(box.logged()[-1].position)

    wait_until(is_behind, f"the position of {output}: {box.log[-3000:]}")


def expect_all(box: ForwardBox, server: NatsServer, stream: str = "AST_STREAM") -> list[Stored]:
    found = stored(server.url, stream)
    assert once(keys_of(found)) == box.expected()
    return found


@pytest.mark.parametrize("window_s", [600.0, 1.0])  # with and without the server's own memory
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path, window_s: float) -> None:
    outcome = forwarder_kills.run(
        tmp_path, n_kills=4, seed=7, rate=100.0, server_kills=1, duplicates_s=window_s
    )
    assert outcome.is_right, outcome
    assert outcome.stored_twice == 0, outcome


def test_what_was_published_before_and_while_nobody_forwarded_is_sent(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.publish(300)
        box.start()
        wait_for_all(box)
        assert box.stop() == 0
        box.publish(50)
        box.start()
        wait_for_all(box)
        assert box.stop() == 0
        found = expect_all(box, server)
        assert len(found) == 350
        assert {one.subject for one in found} >= {
            "ast_stream.home.attic.event.porch.bark",
            "ast_stream.home.attic.gap.yard",
        }
        assert all(one.id == one.body["id"] for one in found)


def test_a_server_that_is_killed_stopped_and_started_again_has_everything(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.start()
        box.publish(20)
        wait_for_all(box)
        server.kill()
        box.publish(20)
        wait_until(lambda: "output centre" in box.log, "the outage to be logged")
        server.start()
        wait_for_all(box)
        server.pause()
        box.publish(20)
        wait_until(lambda: "is not confirmed within" in box.log, "the silence to be logged")
        server.resume()
        wait_for_all(box)
        assert box.stop() == 0
        assert len(expect_all(box, server)) == 60


def test_an_output_that_is_down_holds_up_no_other_and_has_its_own_position(tmp_path: Path) -> None:
    with nats_server(tmp_path / "a") as up, nats_server(tmp_path / "b") as down:
        outputs = [nats_output(up.url), nats_output(down.url, name="second", stream="OTHER")]
        with forward_box(outputs) as box:
            down.kill()
            box.publish(30)
            box.start()
            wait_for_all(box)
            assert box.position("second").get("sources", {}).get("feed") is None
            box.kill()
            down.start()
            box.start()
            wait_for_all(box, "second")
            assert box.stop() == 0
            assert len(expect_all(box, up)) == len(expect_all(box, down, "OTHER")) == 30


def test_a_full_disk_does_not_stop_what_can_be_sent(tmp_path: Path) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.start()
        box.publish(10)
        wait_for_all(box)
        assert box.process is not None
        before = box.position()
        limits = [prlimit, "--pid", str(box.process.pid), "--fsize=0:"]
        subprocess.run(limits, check=True)
        box.publish(10)
        wait_until(lambda: count(server.url) == 20, "the messages")
        endpoint = f"ipc://{box.folder}/forward.sock"
        with Subscriber(endpoint, topics=["status/forward/"]) as feed:

            def disk() -> str | None:
                message = feed.receive(PATIENCE_S)
                assert message is not None
                return ForwardStatus.from_json(message.body, "status").disk  # type: ignore[union-attr]

            wait_until(disk, "the disk to be reported")
        assert box.position() == before
        box.kill()
        box.start()
        wait_for_all(box)
        assert len(expect_all(box, server)) == 20


def test_a_damaged_position_sends_again_what_the_centre_recognises(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.publish(40)
        box.start()
        wait_for_all(box)
        box.kill()
        (box.folder / "forward" / "centre.json").write_bytes(b"\xff\xff")
        box.publish(5)
        box.start()
        wait_for_all(box)
        assert "cannot be used" in box.log
        assert len(expect_all(box, server)) == 45


def test_outputs_come_and_go_on_a_reload_and_mistakes_change_nothing(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.publish(5)
        box.start()
        wait_for_all(box)
        second = nats_output(server.url, name="second", stream="OTHER", prefix="other")
        box.write(forward=[nats_output(server.url), second])
        box.hang_up()
        wait_for_all(box, "second")
        assert len(expect_all(box, server, "OTHER")) == 5
        box.write(forward=[{"name": "x", "type": "telegraph"}])
        box.hang_up()
        wait_until(lambda: "settings are kept as they were" in box.log, "the refusal")
        box.write(forward=[second])
        box.hang_up()
        wait_until(lambda: box.log.count("settings read again: forward") == 2, "the reload")
        box.publish(5)
        wait_for_all(box, "second")
        assert box.log.count("output second: sends to") == 1
        assert len(stored(server.url)) == 5
        assert box.stop() == 0


def test_the_centre_sees_how_the_box_is(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.start()
        wait_until(lambda: status_of(server.url, "home.attic"), "the status of the box")
        found = status_of(server.url, "home.attic")
        assert found is not None
        assert (found["site"], found["box"]) == ("home", "attic")
        assert [output["name"] for output in found["outputs"]] == ["centre"]


def test_a_stop_takes_little_time_while_the_server_is_away(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        server.kill()
        box.publish(5)
        box.start()
        wait_until(lambda: "output centre" in box.log, "the outage to be logged")
        assert box.process is not None
        box.process.terminate()
        assert box.process.wait(20) == 0


def test_a_stop_while_a_full_log_is_sent_is_in_order_and_goes_on_after(tmp_path: Path) -> None:
    outcome = forward_stops.stops(tmp_path, 2000, n_stops=1, seed=3, longest_s=0.5)
    assert outcome["is_equal"], outcome


def test_a_second_forwarder_and_a_configuration_without_outputs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nats_server(tmp_path) as server, forward_box([nats_output(server.url)]) as box:
        box.start()
        wait_until(lambda: "ready" in box.log, "the start")
        command = [sys.executable, "-m", "ast_stream.cli", "forward", "-c", str(box.config)]
        other = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert other.returncode == 3
        assert "in use by another process" in other.stderr
        box.write(forward=[])
        assert run_command_line(["forward", "-c", str(box.config)]) == 78
        assert "expected an output such as" in capsys.readouterr().err


PERMISSIONS = Path(__file__).parents[2] / "docs/how-to/forward.md"


def _config_of(page: Path, first: str) -> str:
    """Return the block of a page that begins with a line."""
    block = page.read_text().split(f"```conf\n{first}", 1)[1].split("```", 1)[0]
    return first + block


def test_a_box_cannot_publish_as_another_nor_read_what_others_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ATTIC", "BARN", "CENTRE"):
        monkeypatch.setenv(f"{name}_PASSWORD", f"secret-of-{name.lower()}")
    config = _config_of(PERMISSIONS, "accounts {")
    login = {"username": "home-attic", "password_env": "ATTIC_PASSWORD"}
    with nats_server(tmp_path, config) as server:
        centre = {"user": "centre", "password": "secret-of-centre"}
        subprocess.run([sys.executable, "-c", _MAKE, server.url], check=True, timeout=60)
        with forward_box([nats_output(server.url, **login)]) as box:
            box.publish(20)
            box.start()
            wait_for_all(box)
            wait_until(lambda: status_of(server.url, "home.attic", **centre), "the status")
            box.kill()
            box.start()  # asks what the stream has of it
            box.publish(5)
            wait_for_all(box)
            assert "may be sent again" not in box.log
            found = stored(server.url, **centre)
            assert once(keys_of(found)) == box.expected()
        with forward_box([nats_output(server.url, **login)], site="farm", box="barn") as thief:
            thief.publish(5)
            thief.start()
            wait_until(lambda: "may not publish to" in thief.log, "the refusal")
            assert thief.stop() == 0
        assert len(stored(server.url, **centre)) == len(found)


_MAKE = """
import sys
from ast_stream.forward.to_nats import NatsForwarder
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import NatsOutput
output = NatsForwarder(NatsOutput.model_validate({
    "name": "make", "type": "nats", "servers": sys.argv[1:], "username": "centre",
    "password_env": "CENTRE_PASSWORD"}), BoxIdentity("make", "make"))
output.start()
while output.error:
    pass
output.holds([])
output.publish_status(b"{}")
output.close()
"""


@pytest.mark.timeout(420)  # a server asks another one again after pauses that grow
def test_a_leaf_node_is_the_buffer_of_a_site(tmp_path: Path) -> None:
    port = free_ports()
    at_hub = f"""
        jetstream {{ store_dir: "{tmp_path}/hub-store", domain: hub }}
        leafnodes {{ listen: "127.0.0.1:{port}" }}
    """
    at_site = f"""
        jetstream {{ store_dir: "{tmp_path}/site-store", domain: home }}
        leafnodes {{ remotes: [{{url: "nats-leaf://127.0.0.1:{port}"}}] }}
    """
    source = {"name": "AST_STREAM", "external": {"api": "$JS.home.API"}}
    config = {"name": "AST_STREAM", "storage": "file", "sources": [source]}

    async def make(client: Any) -> None:
        answer = await client.request(
            "$JS.API.STREAM.CREATE.AST_STREAM", json.dumps(config).encode(), timeout=30
        )
        assert "error" not in json.loads(answer.data), answer.data

    with nats_server(tmp_path / "hub", at_hub) as hub, nats_server(tmp_path / "s", at_site) as site:
        ask(hub.url, make)
        with forward_box([nats_output(site.url)]) as box:
            box.publish(20)
            box.start()
            wait_for_all(box)
            wait_until(lambda: count(hub.url) == 20, "the hub")
            hub.kill()
            box.publish(20)
            wait_for_all(box)
            hub.start()
            wait_until(lambda: count(hub.url) == 40, "the hub")
            expect_all(box, hub)


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_side, own = authority.identity(), authority.identity("DNS:attic")
    tls = f"""tls {{
        cert_file: "{server_side.certificate}", key_file: "{server_side.key}"
        ca_file: "{authority.ca_file}", verify: true
    }}\n"""
    with nats_server(tmp_path / "nats", tls) as server:
        access = {"ca_file": authority.ca_file, "cert_file": str(own.certificate)}
        access |= {"key_file": str(own.key)}
        with forward_box([nats_output(server.url, **access)]) as box:
            box.publish(10)
            box.start()
            wait_for_all(box)
        without = {"ca_file": authority.ca_file}
        with forward_box([nats_output(server.url, **without)]) as box:
            box.start()
            wait_until(lambda: "output centre" in box.log, "the refusal")
        with forward_box([nats_output(server.url, tls=True)]) as box:
            box.start()
            wait_until(lambda: "its certificate is not accepted" in box.log, "the refusal")


def test_check_config_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = nats_output("nats://hub:4222", username="x", password_file=str(tmp_path / "none"))
    with forward_box([output]) as box:
        command = ["check-config", "--no-model", str(box.config)]
        assert run_command_line(command) == 78
        assert "forward[0]: cannot read" in capsys.readouterr().err
        box.write(forward=[nats_output("nats://hub:4222")])
        assert run_command_line(command) == 0
        out = capsys.readouterr()
        assert "box          attic of home" in out.out + out.err
        assert "the NATS server nats://hub:4222, not encrypted" in out.out + out.err
        assert run_command_line(["privacy", "-c", str(box.config), "--json"]) == 0
        sheet = json.loads(capsys.readouterr().out)
        through = "through the output centre: to the NATS server"
        assert any(through in line for line in sheet["outgoing"])
