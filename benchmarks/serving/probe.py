"""A process of its own that asks for a URL's path again and again: `python -m benchmarks.serving.probe HOST PORT PATH`.

It ends when its standard input closes, and prints one JSON object: ``milliseconds``, how long each answer took from the
connection's beginning, and ``failures``.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

INTERVAL = 0.02
TIMEOUT = 10.0


def probe(host: str, port: int, path: str) -> float:
    """Milliseconds until a 200 has come. Raises OSError or ValueError for anything else."""
    started = time.perf_counter()
    with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise ValueError(answer[:100])
    return (time.perf_counter() - started) * 1000


def main() -> None:
    host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    milliseconds: list[float] = []
    failures: list[str] = []
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        try:
            milliseconds.append(probe(host, port, path))
        except (OSError, ValueError) as error:
            failures.append(str(error))
    print(json.dumps({"milliseconds": milliseconds, "failures": failures}))


if __name__ == "__main__":
    main()
