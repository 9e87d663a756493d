"""What runs on the emulated board, `serve.py HOST PORT`: an RPC server that survives its sessions.

Each session runs in a child of the server's own. TVM's server stops serving when one has crashed,
and never closes its connection, so that the client waits for ever; this one goes on.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from typing import Any

from tvm.rpc import server

HOME = os.getcwd()
_serving = server._serving


def serve_one(connection: socket.socket, *arguments: Any) -> None:
    """Serve one session to its end, whatever that is."""
    try:
        _serving(connection, *arguments)
    except RuntimeError as error:
        server.logger.warning("%s", error)
        os.chdir(HOME)
    finally:
        connection.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, its dump is not wanted
    host, port = sys.argv[1], int(sys.argv[2])
    server._serving = serve_one
    server.PopenRPCServerState(host, port, port + 1).thread.join()
