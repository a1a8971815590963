"""A virtual machine of QEMU: a kernel of its own, a sound card, a clock, a disk, a plug to pull.

The processor is this machine's where KVM can do it. Otherwise QEMU computes it (TCG), ten to
twenty times more slowly: limits of time are longer there, also those of the units.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from machine import ENVIRONMENT, PACKAGES, Machine, absent, why_not_build

_PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mke2fs")
_PORT = "org.ast-stream.tests"
_DISK = "6G"
_MEMORY = "4G"
_PROBE_S = 20.0
_SLOWNESS = 8.0  # of a computed processor, on a machine that has other work as well
_DEVICE = "dev-virtio\\x2dports-org.ast\\x2dstream.tests.device"  # the name as systemd escapes it
_AGENT = f"""[Unit]
DefaultDependencies=no
Requires={_DEVICE}
After={_DEVICE} local-fs.target
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/agent.py
Restart=always
[Install]
WantedBy=multi-user.target
"""
_ROOM = """[Unit]
After=sound.target
[Service]
ExecStart=/usr/bin/speaker-test -D plughw:Loopback,0 -c 1 -r 16000 -F S16_LE -t sine -f 60
StandardOutput=null
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
"""
_ASOUND = """pcm."USB Audio" {
    type plug
    slave.pcm "hw:Loopback,1"
    hint { show on description "USB Audio" }
}
"""
_NETWORK = "[Match]\nName=en*\n[Network]\nDHCP=yes\n"
_SLOW_UNITS = """[Service]
TimeoutStartSec=900
TimeoutStopSec=300
WatchdogSec=240
"""


def missing_parts() -> str | None:
    """Return which programs for virtual machines are not installed, or None."""
    return absent(_PROGRAMS, "qemu-system-x86 mmdebstrap e2fsprogs")


def obstacle() -> str | None:
    """Return why this machine cannot have virtual machines whatever is installed, or None."""
    if (reason := why_not_build()) is not None:
        return reason
    return None if os.uname().machine == "x86_64" else "the virtual machine is an x86-64"


class VirtualMachine(Machine):
    """A disk image made of the root folder, and the QEMU that runs it.

    Attributes:
        has_network: whether there is a network card at the next boot.
        clock: what the clock of the board shows at the next boot, e.g. "1970-01-01T00:00:30";
            None: the time of this machine.
    """

    kind = "virtual machine"
    packages = (
        *PACKAGES,
        *("linux-image-amd64", "initramfs-tools", "udev", "kmod", "alsa-utils", "iproute2"),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.has_network = True
        self.clock: str | None = None
        self._image = folder / "disk.img"
        self._console = folder / "console.log"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._received = b""
        self._n_requests = 0
        self._accelerator = ""

    def build(self) -> None:
        super().build()
        self.furnish("/usr/local/lib/agent.py", (Path(__file__).parent / "agent.py").read_text())
        self._enable("tests-agent", _AGENT)
        self._enable("tests-room", _ROOM)
        self.furnish("/etc/systemd/network/card.network", _NETWORK)
        for unit in ("systemd-networkd", "systemd-networkd-wait-online"):
            self._want(f"/lib/systemd/system/{unit}.service")
        mounts = ["/dev/vda / ext4 rw,relatime 0 1"]
        options = "trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144"
        for n, there in enumerate(self._lent.values()):
            mounts.append(f"lent{n} {there} 9p {options} 0 0")
            self.place(there).mkdir(parents=True, exist_ok=True)
        self.furnish("/etc/fstab", "\n".join(mounts) + "\n")
        self.furnish("/etc/modules-load.d/tests.conf", "9pnet_virtio\nsnd-aloop\n")
        self.furnish("/etc/modprobe.d/tests.conf", "options snd-aloop pcm_substreams=1\n")
        self.furnish("/etc/systemd/journald.conf.d/tests.conf", "[Journal]\nStorage=persistent\n")

    def lend_microphone(self, folder: Path) -> None:
        """Let ALSA's loopback be the card: its other end plays the hum, in there."""
        self.furnish("/etc/asound.conf", _ASOUND)

    def boot(self) -> None:
        if not self._image.exists():
            self._accelerator = self._fastest()
            if self._accelerator == "tcg":
                self.patience_s *= _SLOWNESS
                self.furnish(
                    "/etc/systemd/system/ast-stream-.service.d/slow-machine.conf", _SLOW_UNITS
                )
            make = ["mke2fs", "-q", "-t", "ext4", "-d", str(self.root), str(self._image), _DISK]
            subprocess.run(make, check=True)
        path = self.folder / "port"
        path.unlink(missing_ok=True)
        with self._console.open("ab") as log:
            self._qemu = subprocess.Popen(
                [*self._command(), *self._devices(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_until(path.exists, "QEMU")
        self._port = socket.socket(socket.AF_UNIX)
        self._port.connect(str(path))
        self._received = b""
        self.wait_for_boot()
        self.run("ldconfig")

    def reboot(self) -> None:
        assert self._qemu is not None
        self.run("systemctl reboot", check=False)
        self._qemu.wait(self.patience_s)
        self.boot()

    def cut_power(self) -> None:
        if self._port is not None:
            self._port.close()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(self.patience_s)

    def close(self) -> None:
        self.cut_power()

    def _command(self, accelerator: str | None = None) -> list[str]:
        accelerator = accelerator or self._accelerator
        kernel = max(self.place("/boot").glob("vmlinuz-*"))
        command = ["qemu-system-x86_64", "-machine", "q35", "-accel", accelerator]
        command += ["-cpu", "host,-arch-capabilities" if accelerator == "kvm" else "max"]
        command += ["-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"]
        return [*command, "-kernel", str(kernel)]

    def _devices(self, port: Path) -> list[str]:
        initrd = max(self.place("/boot").glob("initrd.img-*"))
        words = "root=/dev/vda rw console=ttyS0 panic=-1 systemd.show_status=no"
        options = ["-m", _MEMORY, "-smp", "2", "-initrd", str(initrd), "-append", words]
        options += ["-drive", f"file={self._image},format=raw,if=virtio"]
        options += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        options += ["-chardev", f"socket,id=port,path={port},server=on,wait=off"]
        options += ["-device", f"virtserialport,chardev=port,name={_PORT}"]
        options += ["-nic", "user,restrict=on" if self.has_network else "none"]
        options += ["-rtc", f"base={self.clock or 'utc'}"]
        for n, here in enumerate(self._lent):
            options += ["-fsdev", f"local,id=lent{n},path={here},security_model=none,readonly=on"]
            options += ["-device", f"virtio-9p-pci,fsdev=lent{n},mount_tag=lent{n}"]
        return options

    def _fastest(self) -> str:
        """Return whether KVM runs our kernel: some processors and nested hosts cannot."""
        if not os.access("/dev/kvm", os.W_OK):
            return "tcg"
        command = [*self._command("kvm"), "-append", "console=ttyS0 panic=-1", "-m", "512M"]
        try:  # without a disk it panics, and is done
            done = subprocess.run(command, capture_output=True, timeout=_PROBE_S)
        except subprocess.TimeoutExpired:
            return "tcg"
        return "kvm" if b"panic" in done.stdout else "tcg"

    def _enable(self, name: str, text: str) -> None:
        self.furnish(f"/etc/systemd/system/{name}.service", text)
        self._want(f"/etc/systemd/system/{name}.service")

    def _want(self, unit: str) -> None:
        link = self.place(f"/etc/systemd/system/multi-user.target.wants/{Path(unit).name}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(unit)

    def _execute(
        self, argv: Sequence[str], text: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        assert self._port is not None
        assert self._qemu is not None
        if self._qemu.poll() is not None:
            raise AssertionError(f"QEMU has ended\n{self._what_it_said()}")
        self._n_requests += 1
        request = {"id": self._n_requests, "argv": list(argv), "text": text}
        request["environment"] = ENVIRONMENT
        end_s = time.monotonic() + timeout_s
        try:
            self._port.settimeout(timeout_s)
            self._port.sendall(json.dumps(request).encode() + b"\n")
            while True:
                number, status, output, errors = self._line(end_s)
                if number == self._n_requests:
                    return subprocess.CompletedProcess(list(argv), status, output, errors)
        except TimeoutError as error:
            raise subprocess.TimeoutExpired(list(argv), timeout_s) from error
        except OSError as error:
            raise LookupError(str(error)) from error

    def _line(self, end_s: float) -> tuple[int, int, str, str]:
        """Return the next answer: the number of its request, exit status, output and errors."""
        assert self._port is not None
        while b"\n" not in self._received:
            self._port.settimeout(max(end_s - time.monotonic(), 0.01))
            piece = self._port.recv(65536)
            if not piece:
                raise OSError("the machine has closed its port")
            self._received += piece
        line, self._received = self._received.split(b"\n", 1)
        number, status, output, errors = json.loads(line)
        return number, status, output, errors

    def _what_it_said(self) -> str:
        return self._console.read_text(errors="replace")[-5000:]
