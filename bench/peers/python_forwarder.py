"""The plain forwarder that one would write first: one datagram at a time.

usage: python_forwarder.py RECEIVE_FD CONNECTED_SEND_FD
"""

from __future__ import annotations

import contextlib
import socket
import sys


def forward(receive: socket.socket, send: socket.socket) -> None:
    """Receives and sends until the process is ended."""
    while True:
        datagram, _client = receive.recvfrom(2048)
        with contextlib.suppress(ConnectionRefusedError):
            send.send(datagram)


if __name__ == "__main__":
    forward(socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
