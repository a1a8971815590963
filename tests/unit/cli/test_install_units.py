"""The systemd units as they are rendered: valid, closed, and true to the configuration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ast_stream.cli.app import run_command_line
from ast_stream.cli.install_units import UnitPlan, doubts, program, render, wanted_units
from ast_stream.settings.schema import Settings

MOST_EXPOSED = 2.5  # of systemd-analyze security, 0 (closed) to 10
SERVICES = ("worker", "alerts", "record", "capture@", "capture-net", "web", "forward")
RELAXED = re.compile(
    r"(MemoryDenyWriteExecute|PrivateDevices|ProtectKernelTunables)=no|ProcSubset=all"
)
IN_CI = os.environ.get("CI") == "true"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not IN_CI,
    reason="systemd-analyze (Debian package systemd) is not installed",
)


def settings(*sources: dict[str, Any], **sections: Any) -> Settings:
    streams = [{"name": f"s{number}", "source": source} for number, source in enumerate(sources)]
    return Settings.model_validate({"streams": streams, **sections})


MICROPHONE = {"type": "microphone"}
KEYS = {"server_secret": "/etc/worker.key_secret", "client_secret": "/etc/box.key_secret"}
CAMERA = {"type": "url", "url": "rtsp://camera/audio"}


def plan(chosen: Settings | None = None, **options: Any) -> UnitPlan:
    chosen = chosen or settings(MICROPHONE, CAMERA)
    return UnitPlan(Path("/bin/true"), Path("/etc/ast-stream/config.yaml"), chosen, **options)


def install(chosen: UnitPlan, folder: Path) -> list[Path]:
    """Write what is rendered below `folder` and return the units."""
    for path, text in render(chosen).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".service", ".target"))


def analyze(*args: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C", "XDG_RUNTIME_DIR": "/tmp"},  # --user wants to know one
    )


@needs_systemd
@pytest.mark.parametrize(
    "chosen",
    [
        plan(),
        plan(settings(MICROPHONE, metrics={"listen": "0.0.0.0:9464"}, state_dir="/srv/ast")),
        UnitPlan(Path("/bin/true"), Path("/etc/with space/100%/$HOME/it's.yaml"), None),
        UnitPlan(Path("/bin/true"), Path("/home/me/config.yaml"), settings(CAMERA)),
        plan(settings(MICROPHONE, transport={"feed": "tcp://10.0.0.1:5000", "curve": KEYS})),
    ],
    ids=["usual", "open metrics", "odd path", "in a home", "keys"],
)
def test_systemd_finds_nothing_wrong(chosen: UnitPlan, tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", *install(chosen, tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units_of_a_user(tmp_path: Path) -> None:
    done = analyze("--user", "verify", "--man=no", *install(plan(is_user=True), tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", [*SERVICES, "failed@"])
def test_units_are_closed(name: str, tmp_path: Path) -> None:
    install(plan(), tmp_path)
    unit = tmp_path / f"etc/systemd/system/ast-stream-{name}.service"
    threshold = round(MOST_EXPOSED * 10)
    done = analyze("security", "--offline=true", f"--threshold={threshold}", unit)
    assert done.returncode == 0, done.stdout


def test_every_relaxation_has_its_reason_above_it() -> None:
    n_found = 0
    for path, text in render(plan()).items():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if RELAXED.match(line):
                n_found += 1
                above = number - 1
                while RELAXED.match(lines[above]):
                    above -= 1
                assert lines[above].startswith("# "), f"{path}: {line} is not explained"
    assert n_found == 7


def test_services_have_the_life_that_the_processes_live() -> None:
    rendered = render(plan())
    for name in SERVICES:
        text = rendered[Path(f"etc/systemd/system/ast-stream-{name}.service")]
        for line in ("Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "User=ast-stream"):
            assert f"\n{line}\n" in text
        assert re.search(r"^RestartPreventExitStatus=2 78( 79)?$", text, re.MULTILINE)
        assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)
    assert not [path for path, text in rendered.items() if re.search(r"@[A-Z_]+@", text)]


def test_a_forwarder_that_checks_models_has_room_for_one() -> None:
    path = Path("etc/systemd/system/ast-stream-forward.service")
    centre = {"name": "centre", "type": "nats", "servers": ["nats://centre"]}
    alone = settings(CAMERA, forward=[centre])
    follows = settings(CAMERA, forward=[centre], fleet={"models": {"follow": True}})
    assert "\nMemoryMax=512M\nMemoryDenyWriteExecute=yes\n" in render(plan(alone))[path]
    assert "\nProcSubset=pid\n" in render(plan(alone))[path]
    text = render(plan(follows))[path]
    more = ("MemoryMax=4G", "MemoryDenyWriteExecute=no", "OOMPolicy=continue", "ProcSubset=all")
    for line in more:
        assert f"\n{line}\n" in text
    assert "\nSystemCallFilter=adjtimex clock_adjtime\n" in text  # it reads the kernel's clock


def test_target_starts_what_the_configuration_needs() -> None:
    sources = (MICROPHONE, CAMERA, {"type": "stdin"}, {"type": "scene"})
    chosen = settings(*sources, alerts={"rules": ["a.yaml"]})
    assert wanted_units(plan(chosen)) == [
        "ast-stream-worker.service",
        "ast-stream-alerts.service",
        "ast-stream-capture@s0.service",
        "ast-stream-capture-net.service",
    ]
    assert wanted_units(plan(settings(CAMERA))) == [
        "ast-stream-worker.service",
        "ast-stream-capture-net.service",
    ]
    target = render(plan(chosen))[Path("etc/systemd/system/ast-stream.target")]
    assert f"Wants={' '.join(wanted_units(plan(chosen)))}\n" in target


def test_user_units_hold_nothing_that_only_the_system_can_do() -> None:
    rendered = render(plan(is_user=True, has_nvidia=True))
    assert {path.suffix for path in rendered} == {".service", ".target"}
    assert all(path.parent == Path() for path in rendered)
    for text in rendered.values():
        assert not re.search(r"^(User|SupplementaryGroups|DeviceAllow|Protect\w+)=", text, re.M)
    assert "WantedBy=default.target" in rendered[Path("ast-stream.target")]


def test_module_of_the_gpu_is_loaded_only_where_its_driver_is() -> None:
    path = Path("etc/modules-load.d/ast-stream.conf")
    assert path not in render(plan())
    assert render(plan(has_nvidia=True))[path].endswith("\nnvidia-uvm\n")


def test_units_of_boxes_with_keys_load_their_secrets_as_credentials() -> None:
    keys = {"server_secret": "/etc/keys/50%.key_secret", "client_secret": "/etc/keys/a.key_secret"}
    chosen = settings(MICROPHONE, transport={"feed": "tcp://10.0.0.1:5000", "curve": keys})
    texts = {path.name: text for path, text in render(plan(chosen)).items()}
    server, client = (
        "LoadCredential=curve-server:/etc/keys/50%%.key_secret\n",
        "LoadCredential=curve-client:/etc/keys/a.key_secret\n",
    )
    has = {name: (server in text, client in text) for name, text in texts.items()}
    assert {name for name, found in has.items() if found == (True, False)} == {
        "ast-stream-worker.service"
    }
    assert {name for name, found in has.items() if found == (False, True)} == {
        "ast-stream-alerts.service",
        "ast-stream-record.service",
        "ast-stream-capture@.service",
        "ast-stream-capture-net.service",
        "ast-stream-web.service",
        "ast-stream-forward.service",
    }
    assert not re.search("^IPAddressDeny", texts["ast-stream-capture@.service"], re.MULTILINE)
    assert not any("LoadCredential=" in text for text in render(plan()).values())


def test_state_elsewhere_is_opened_and_metrics_for_others_are_let_through() -> None:
    capture = Path("etc/systemd/system/ast-stream-capture@.service")
    usual = render(plan())[capture]
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in usual
    assert "ReadWritePaths" not in usual
    other = settings(MICROPHONE, metrics={"listen": "0.0.0.0:9464"}, state_dir="/srv/ast")
    text = render(plan(other))[capture]
    assert "\nReadWritePaths=/srv/ast\n" in text
    folders = render(plan(other))[Path("etc/tmpfiles.d/ast-stream.conf")]
    assert "\nd /srv/ast 0750 ast-stream ast-stream -\n" in folders
    assert not re.search(r"^IPAddressDeny", text, re.MULTILINE)


def test_the_page_is_started_where_it_listens_and_kept_on_the_box_where_it_stays() -> None:
    unit = Path("etc/systemd/system/ast-stream-web.service")
    on_loopback = plan(settings(CAMERA, web={"listen": "127.0.0.1:8080"}))
    assert "ast-stream-web.service" in wanted_units(on_loopback)
    assert "ast-stream-web.service" not in wanted_units(plan(settings(CAMERA)))
    assert "\nIPAddressDeny=any\nIPAddressAllow=localhost\n" in render(on_loopback)[unit]
    tls = {"listen": "0.0.0.0:8443", "certificate": "/a.pem", "private_key": "/b.pem"}
    text = render(plan(settings(CAMERA, web=tls)))[unit]
    assert not re.search(r"^IPAddressDeny", text, re.MULTILINE)


def test_who_follows_a_pool_needs_no_worker_and_reaches_its_servers() -> None:
    pool = {"name": "city", "nats": {"servers": ["nats://nats.example:4222"]}}
    web = {"listen": "127.0.0.1:8080"}
    centre = plan(settings(pool=pool, recorder={}, web=web))
    assert wanted_units(centre) == ["ast-stream-record.service", "ast-stream-web.service"]
    texts = render(centre)
    for name in ("record", "web", "capture@"):
        text = texts[Path(f"etc/systemd/system/ast-stream-{name}.service")]
        assert not re.search(r"^IPAddressDeny", text, re.MULTILINE)
    transport = {"audio": "tcp://127.0.0.1:5555", "rings": "tcp://127.0.0.1:5559"}
    assert "ast-stream-worker.service" in wanted_units(
        plan(settings(pool=pool, transport=transport))
    )


def is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & 0o001


def test_what_would_stop_the_service_user_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    hidden = UnitPlan(tmp_path / "ast-stream", Path("/etc/ast-stream/a.yaml"), settings(MICROPHONE))
    closed = next(folder for folder in reversed(hidden.command.parents) if is_closed(folder))
    assert f"{hidden.command}: the user ast-stream may not enter {closed}" in doubts(hidden)
    chosen = settings(MICROPHONE, {"type": "stdin"}, runtime_dir="/somewhere")
    text = "\n".join(doubts(plan(chosen)))
    assert "stream s1 reads standard input" in text
    assert "write runtime_dir: /run/ast-stream, so that commands in a shell" in text
    assert len(doubts(plan())) == 1
    assert doubts(plan(settings(CAMERA, runtime_dir="/run/ast-stream"))) == []
    (text,) = doubts(plan(is_user=True))
    assert "state_dir is /var/lib/ast-stream, which is not yours" in text
    absent = UnitPlan(Path("/bin/true"), Path("/etc/ast-stream/a.yaml"), None)
    assert doubts(absent) == [f"{absent.config} does not exist yet: write it, then install again"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text("streams: [{name: porch, source: {type: microphone}}]\n")
    return file


def install_units(*args: object) -> int:
    return run_command_line(["install-units", *map(str, args)])


def test_install_writes_once_and_says_what_to_do_next(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    assert install_units("-c", config, "--dest", root) == 0
    out, err = capsys.readouterr()
    worker = root / "etc/systemd/system/ast-stream-worker.service"
    assert f"{worker}: written" in out
    assert f"ExecStart={program()} worker --config {config}\n" in worker.read_text()
    assert "systemctl enable --now ast-stream.target" in err
    assert "ast-stream-capture@porch.service" in err
    worker.write_text("by hand")
    assert install_units("-c", config, "--dest", root) == 0
    out, _ = capsys.readouterr()
    assert f"{worker}: replaced" in out
    assert out.count("as it was") == len(out.splitlines()) - 1
    assert not list(root.rglob("*.unfinished"))


def test_update_restarts_what_runs(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_units("-c", config, "--dest", tmp_path) == 0
    _, err = capsys.readouterr()
    assert "systemctl enable --now ast-stream.target" in err
    config.write_text(config.read_text().replace("porch", "hall"))
    assert install_units("-c", config, "--dest", tmp_path) == 0
    _, err = capsys.readouterr()
    assert "systemctl restart ast-stream.target" in err


@pytest.mark.parametrize("for_whom", [(), ("--user",)], ids=["system", "user"])
def test_remove_removes_what_was_written_and_enabled_and_nothing_else(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], for_whom: tuple[str, ...]
) -> None:
    root = tmp_path / "root"
    assert install_units("-c", config, "--dest", root, "--nvidia", *for_whom) == 0
    (target,) = root.rglob("ast-stream.target")
    wanted_by = "default" if for_whom else "multi-user"
    link = target.parent / f"{wanted_by}.target.wants/ast-stream.target"
    link.parent.mkdir()
    link.symlink_to(target)
    drop_in = target.parent / "ast-stream-worker.service.d/mine.conf"
    drop_in.parent.mkdir()
    drop_in.touch()
    capsys.readouterr()
    assert install_units("--dest", root, "--remove", "--dry-run", *for_whom) == 0
    assert f"{link}: would be removed" in capsys.readouterr().out
    config.unlink()
    assert install_units("-c", config, "--dest", root, "--remove", *for_whom) == 0
    out, err = capsys.readouterr()
    assert f"{target}: removed" in out
    assert "daemon-reload" in err
    assert f"Left as it was: {drop_in.parent}" in err
    assert [path for path in root.rglob("*") if not path.is_dir()] == [drop_in]
    assert install_units("--dest", root, "--remove", *for_whom) == 0
    assert f"{target}: not there" in capsys.readouterr().out


def test_memory_of_the_process_of_many_streams_grows_with_them() -> None:
    def limit(*sources: dict[str, Any]) -> str:
        rendered = render(plan(settings(*sources, model={"max_streams": 256})))
        unit = rendered[Path("etc/systemd/system/ast-stream-capture-net.service")]
        return re.search(r"^MemoryMax=(\w+)$", unit, re.MULTILINE)[1]  # type: ignore[index]

    assert limit(MICROPHONE) == limit(CAMERA) == "1024M"
    assert limit(*[CAMERA] * 200) == "7205M"


@pytest.mark.parametrize("name", SERVICES)
def test_unit_that_is_given_up_says_so_and_is_reloaded_with_the_target(name: str) -> None:
    text = render(plan())[Path(f"etc/systemd/system/ast-stream-{name}.service")]
    assert "\nOnFailure=ast-stream-failed@%n.service\n" in text
    assert "\nReloadPropagatedFrom=ast-stream.target\n" in text
    assert re.search(r"^LimitNOFILE=\d+$", text, re.MULTILINE)


def test_dry_run_prints_and_writes_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_units("-c", config, "--dest", tmp_path / "root", "--dry-run") == 0
    out, _ = capsys.readouterr()
    assert f"# {tmp_path}/root/etc/systemd/system/ast-stream-worker.service\n" in out
    assert "\nExecStart=" in out
    assert not (tmp_path / "root").exists()


def test_units_of_a_user_go_where_their_manager_looks(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    assert install_units("-c", config, "--user") == 0
    assert (tmp_path / "mine/systemd/user/ast-stream-worker.service").exists()
    _, err = capsys.readouterr()
    assert "systemctl --user enable --now ast-stream.target" in err
    assert "loginctl enable-linger" in err
    assert "systemd-sysusers" not in err


def test_folder_that_cannot_be_written_and_bad_configurations_are_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert install_units("-c", config, "--dest", tmp_path / "file") == 3
    _, err = capsys.readouterr()
    assert "cannot write" in err
    assert "run it as root, or with --user or --dest" in err
    config.write_text("streams: []\n")
    assert install_units("-c", config, "--dest", tmp_path / "root") == 78
    assert not (tmp_path / "root").exists()


def test_environment_without_the_program_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert install_units("--dest", tmp_path / "root") == 3
    _, err = capsys.readouterr()
    assert "install the package into this environment" in err


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file in which a systemctl notes how it is called; it says that all is well."""
    noted = tmp_path / "calls"
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {noted}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("ast_stream.cli.systemctl._BOOTED", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    noted.touch()
    return noted


def test_second_install_starts_the_units_of_new_streams_and_stops_those_of_removed_ones(
    config: Path, calls: Path
) -> None:
    assert install_units("-c", config, "--user") == 0
    calls.write_text("")
    config.write_text(config.read_text().replace("porch", "hall"))
    assert install_units("-c", config, "--user") == 0
    assert calls.read_text().splitlines() == [
        "--user is-active --quiet ast-stream.target",
        "--user daemon-reload",
        "--user stop ast-stream-capture@porch.service",
        "--user start ast-stream-capture@hall.service",
    ]


def test_install_on_a_machine_where_nothing_runs_starts_nothing(config: Path, calls: Path) -> None:
    program = calls.with_name("bin") / "systemctl"
    program.write_text(program.read_text() + "exit 3\n")
    assert install_units("-c", config, "--user") == 0
    assert calls.read_text() == "--user is-active --quiet ast-stream.target\n"


def test_remove_stops_disables_and_forgets_what_runs_and_says_how_to_delete_the_rest(
    config: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_units("-c", config, "--user") == 0
    calls.write_text("")
    capsys.readouterr()
    assert install_units("-c", config, "--user", "--remove") == 0
    verbs = [line.split()[1] for line in calls.read_text().splitlines()]
    assert verbs == ["stop", "disable", "daemon-reload", "reset-failed"]
    assert "ast-stream-capture@*.service" in calls.read_text()
    assert not list((calls.parent / "mine").rglob("*.service"))
    _, err = capsys.readouterr()
    assert f"rm -rf {config}" in err
    assert config.exists()


def test_remove_leaves_what_somebody_else_has_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_units("-c", config, "--dest", tmp_path) == 0
    worker = tmp_path / "etc/systemd/system/ast-stream-worker.service"
    worker.write_text("[Service]\nExecStart=/bin/true\n")
    assert install_units("--dest", tmp_path, "--remove") == 0
    out, err = capsys.readouterr()
    assert f"{worker}: left" in out
    assert str(worker) in err
    assert [path.name for path in tmp_path.rglob("*.service")] == [worker.name]


def test_remove_that_cannot_stop_what_runs_removes_nothing(
    config: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_units("-c", config, "--user") == 0
    (calls.with_name("bin") / "systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    capsys.readouterr()
    assert install_units("-c", config, "--user", "--remove") == 3
    assert "systemctl stop: no bus; nothing was removed" in capsys.readouterr().err
    assert list((calls.parent / "mine").rglob("*.service"))


def test_units_keep_sound_out_of_core_dumps_and_swap_where_it_is_private() -> None:
    private = settings(MICROPHONE).model_copy(update={"privacy": "sensor"})
    for chosen, is_private in ((settings(MICROPHONE), False), (private, True)):
        units = {path.name: text for path, text in render(plan(chosen)).items()}
        for name in ("ast-stream-worker.service", "ast-stream-capture@.service"):
            lines = units[name].splitlines()
            assert ("MemorySwapMax=0" in lines) == ("LimitCORE=0" in lines) == is_private
        assert "MemorySwapMax=0" not in units["ast-stream-alerts.service"]


def test_each_of_several_workers_has_a_unit_of_its_own() -> None:
    shared = {"front": {"streams": ["s0"]}, "back": {"streams": ["s1"]}}
    chosen = plan(settings(MICROPHONE, CAMERA, workers=shared))
    assert wanted_units(chosen)[:2] == [
        "ast-stream-worker@front.service",
        "ast-stream-worker@back.service",
    ]
    text = render(chosen)[Path("etc/systemd/system/ast-stream-worker@.service")]
    assert "worker --config /etc/ast-stream/config.yaml --name %i\n" in text
    assert "\nSyslogIdentifier=ast-stream-worker-%i\n" in text


@pytest.mark.parametrize(
    ("is_target_active", "wants", "is_started"),
    [
        (True, "ast-stream-alerts.service ast-stream-worker.service", True),
        (True, "ast-stream-worker@front.service", False),  # no longer in the configuration
        (False, "ast-stream-worker.service", False),  # stopped with the target, too slowly
    ],
)
def test_what_was_stopped_or_is_no_longer_wanted_is_not_started_again(
    is_target_active: bool, wants: str, is_started: bool, tmp_path: Path
) -> None:
    text = render(plan())[Path("etc/systemd/system/ast-stream-failed@.service")]
    found = re.search(r"^ExecStart=\+/bin/sh -c '(.*?)'$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    script = found[1].replace("\\\n", "").replace("$$", "$")
    control = tmp_path / "systemctl"
    control.write_text(
        "#!/bin/sh\n"
        f'case "$1" in is-active) exit {int(not is_target_active)};; show) echo "{wants}";; '
        'start) echo "$3" >> started;; esac\n'
    )
    control.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RETRY_S": "0"}
    environment |= {"UNIT": "ast-stream-worker.service", "MONITOR_EXIT_STATUS": "TERM"}
    done = subprocess.run(["sh", "-c", script], env=environment, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "started").exists() is is_started
