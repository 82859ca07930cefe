"""A reader who does what a page says: types its commands into a shell, runs its Python, writes its files."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs_support.pages import Block, Command, blocks, commands, says, tenants
from nagaya import Nagaya

_COMMAND_S = 60.0
_BACKGROUND_S = 120.0
_PORTS = re.compile(r"\b870[0-9]\b")


class Reader:
    """One reader of one page, in a folder of its own, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports: dict[str, str] = {}
        self._logs = 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NAGAYA_")}
        self._environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "120",
        }
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._runner = asyncio.Runner()
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, page: str, where: str) -> int:
        """Do everything the page says; gives the number of blocks that were run or written."""
        done = 0
        self._runner.run(self._make(tenants(page)))
        printed: str | None = None
        for block in blocks(page):
            at = f"{where}:{block.line}"
            if block.language == "text" and block.file is None:
                if printed is not None:
                    wanted = self._own(block.body)
                    assert says(wanted, printed), f"{at}\nwanted:\n{wanted}\ngot:\n{printed}"
                printed = None
                continue
            printed = None
            if not block.is_run:
                continue
            if block.file is not None:
                (self._folder / block.file).write_text(self._own(block.body), "utf-8")
            elif block.language == "python":
                printed = self._python(block, at)
            elif block.language == "console":
                for command in commands(self._own(block.body)):
                    self._type(command, at)
            else:
                continue
            done += 1
        return done

    async def _make(self, tenant_ids: list[str]) -> None:
        if tenant_ids:
            async with Nagaya.open(self._folder / "nagaya-data") as nagaya:
                for tenant_id in tenant_ids:
                    await nagaya.tenants.create(tenant_id, name="Acme KK")

    def _own(self, text: str) -> str:
        """The text with this reader's own free ports in place of the page's."""
        return _PORTS.sub(lambda match: self._ports.setdefault(match[0], str(_free_port())), text)

    # --- Python ---

    def _python(self, block: Block, at: str) -> str:
        source = self._own(block.body)
        code = compile(source, at, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        printed = io.StringIO()
        with self._here(), contextlib.redirect_stdout(printed):
            if code.co_flags & inspect.CO_COROUTINE:
                self._runner.run(_evaluated(code, self._names))
            else:
                exec(code, self._names)
        return printed.getvalue()

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """The shell's folder and exported variables, as if Python had been started from it."""
        before_folder, before = Path.cwd(), dict(os.environ)
        os.environ.clear()
        os.environ.update(self._exported())
        os.chdir(self._folder)
        try:
            yield
        finally:
            os.chdir(before_folder)
            os.environ.clear()
            os.environ.update(before)

    def _exported(self) -> dict[str, str]:
        output, _ = self._run("env -0")
        return dict(entry.split("=", 1) for entry in output.split("\0") if "=" in entry)

    # --- the shell ---

    def _type(self, command: Command, at: str) -> None:
        typed, said, status = command
        if typed.endswith(" &"):
            self._begin(typed.removesuffix(" &"), said, at)
            return
        output, ended = self._run(typed)
        assert ended == status, f"{at}\n$ {typed}\nended with {ended}, not {status}:\n{output}"
        if said is not None:
            assert says(said, output), f"{at}\n$ {typed}\nwanted:\n{said}\ngot:\n{output}"

    def _begin(self, typed: str, said: str | None, at: str) -> None:
        """Something that runs on beside the rest; the next step waits until it has said what it must."""
        self._logs += 1
        log = self._folder / f".background-{self._logs}.log"
        self._run(f"{typed} >{log} 2>&1 </dev/null &")
        ends_s = time.monotonic() + _BACKGROUND_S
        while said is not None and not any(says(said, line) for line in _lines(log)):
            assert time.monotonic() < ends_s, f"{at}\n$ {typed} &\nwanted:\n{said}\ngot:\n{''.join(_lines(log))}"
            time.sleep(0.05)

    def _run(self, typed: str) -> tuple[str, int]:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        mark = f"end-of-{os.urandom(6).hex()}"
        # In braces, so that variables and functions stay, and no command reads what is typed next.
        self._shell.stdin.write(f"{{ {typed}\n}} </dev/null\nprintf '\\n%s %s\\n' {mark} $?\n".encode())
        self._shell.stdin.flush()
        output = b""
        ends_s = time.monotonic() + _COMMAND_S
        with selectors.DefaultSelector() as ready:
            ready.register(self._shell.stdout, selectors.EVENT_READ)
            while not (match := re.search(rb"\n%b (\d+)\n" % mark.encode(), output)):
                assert ready.select(ends_s - time.monotonic()), f"$ {typed}\ndoes not end:\n{output.decode()}"
                piece = os.read(self._shell.stdout.fileno(), 65536)
                assert piece, f"$ {typed}\nthe shell ended:\n{output.decode()}"
                output += piece
        return output[: match.start()].decode(), int(match[1])

    def close(self) -> None:
        """End everything that was begun."""
        for thing in self._names.values():
            # A script's clients end with its process; these would live on in this one.
            close = getattr(thing, "close", None)
            if hasattr(type(thing), "__exit__") and inspect.ismethod(close):
                close()
        self._runner.close()
        group = self._shell.pid
        for number, patience_s in ((signal.SIGTERM, 0.3), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(patience_s)
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


async def _evaluated(code: Any, names: dict[str, Any]) -> None:
    await eval(code, names)


def _lines(log: Path) -> list[str]:
    return log.read_text("utf-8", "replace").splitlines(keepends=True) if log.exists() else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
