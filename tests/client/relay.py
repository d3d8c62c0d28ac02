"""A relay in front of a server, which breaks one connection at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def cut_after(server_port: int, request_line: bytes) -> Iterator[int]:
    """The port of a relay. The answer to the first request that begins with ``request_line`` is lost on the way."""
    armed = [True]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(
                        target=_relay, args=(client, server_port, request_line, armed), daemon=True
                    ).start()

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def _relay(client: socket.socket, server_port: int, request_line: bytes, armed: list[bool]) -> None:
    with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", server_port)) as server:
        lost = threading.Event()
        threading.Thread(target=_answers, args=(server, client, lost), daemon=True).start()
        while data := client.recv(65536):
            if armed[0] and data.startswith(request_line):
                armed[0] = False
                lost.set()
            server.sendall(data)


def _answers(server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(65536):
            if lost.is_set():
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(data)
