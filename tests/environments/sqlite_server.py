"""An MCP server for tests: a database of notes in memory, and tools that misbehave.

Run as `python sqlite_server.py`, or with a port for streamable HTTP.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from mcp.server import MCPServer
from mcp.types import CallToolResult, ImageContent, TextContent

server = MCPServer("notes")
database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("create table notes (id integer primary key, text text not null)")


@server.tool()
def add_note(text: str) -> int:
    """Write a note; returns its id."""
    with database:
        return int(database.execute("insert into notes (text) values (?)", (text,)).lastrowid or 0)


@server.tool()
def query(sql: str, limit: int = 10) -> list[list[str]]:
    """Run a query."""
    return [[str(value) for value in row] for row in database.execute(sql).fetchmany(limit)]


@server.tool()
async def wait(seconds: float) -> str:
    """Wait."""
    await anyio.sleep(seconds)
    return f"waited {seconds}"


@server.tool()
async def misbehave(how: str) -> CallToolResult:
    """Do something else."""
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(999)
    if how == "raise":
        raise ValueError(f"in {tempfile.gettempdir()} with {os.environ.get('SHOWN_TO_SERVER')}")
    if how == "stdout":
        os.write(1, b"noise\n\xff\xfe\n{}\n")
    if how == "stderr":
        os.write(2, b"noise\n" * 10_000)
    if how == "child":
        subprocess.Popen(["sleep", "987"])
    text = {
        "long": "é" * 3_000_000,
        "surrogate": "a\ud800",
        "secret": str([name for name in os.environ if "KEY" in name]),
        "folder": str(Path(tempfile.gettempdir()).is_dir()),
    }.get(how, how)
    content = [TextContent(text=text), ImageContent(data="QUJD", mime_type="image/png")]
    return CallToolResult(content=content[: 2 if how == "image" else 1], is_error=how == "error")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
