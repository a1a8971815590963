"""Runs what the tests ask for, inside a virtual machine: JSON lines over a serial port.

Of the standard library alone: the interpreter of the machine's own Debian runs it, whatever state
the network and the lent folders are in.
"""

import json
import subprocess
import threading

PORT = "/dev/virtio-ports/org.ast-stream.tests"
_writing = threading.Lock()


def answer(port, request) -> None:  # type: ignore[no-untyped-def]
    try:
        done = subprocess.run(
            request["argv"],
            input=request["text"] or "",
            capture_output=True,
            text=True,
            errors="replace",
            env=request["environment"],
        )
        found = [done.returncode, done.stdout, done.stderr]
    except OSError as error:
        found = [127, "", f"{error}\n"]
    with _writing:
        port.write(json.dumps([request["id"], *found]).encode() + b"\n")


with open(PORT, "r+b", buffering=0) as port:
    line = b""
    while True:
        if not (piece := port.read(65536)):
            continue
        line += piece
        while b"\n" in line:
            request, line = line.split(b"\n", 1)
            threading.Thread(target=answer, args=(port, json.loads(request))).start()
