"""The process that reads documents: ``python -m nagaya.extraction.worker``, started by an ``Extractor``.

It takes one document after the other from its standard input. It has no settings, no keys and no names of tenants, can
write no file, and ends when its server does, whatever it is doing then.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, TypeVar

from nagaya.extraction import frames
from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Chunk, chunked
from nagaya.extraction.formats import is_picture
from nagaya.extraction.limits import Refused
from nagaya.extraction.reading import read

_Item = TypeVar("_Item", Block, Chunk)
_BATCH_CHARACTERS: Final = 64 * 1024
_BATCH_ITEMS: Final = 256
_WAITING_PIECES: Final = 4
_CPU_GRACE_S: Final = 30


def main(memory_bytes: int) -> None:
    """Serve until standard input ends."""
    _load()
    _confine(memory_bytes)
    answers = os.fdopen(os.dup(1), "wb")
    # A library that prints, prints into nothing: it would break the messages, or tell a log what is in a document.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    pieces: queue.Queue[bytes] = queue.Queue(_WAITING_PIECES)
    # Another thread listens, also while a document is read: the end of the input is the end of the server.
    threading.Thread(target=_listen, args=(sys.stdin.buffer, pieces), daemon=True).start()
    try:
        while True:
            _serve(pieces, answers)
            gc.collect()
    except MemoryError:
        os._exit(frames.OUT_OF_MEMORY)


def _serve(pieces: queue.Queue[bytes], answers: BinaryIO) -> None:
    job = frames.decode_job(pieces.get())
    document = _received(pieces)
    _limit_cpu(job.limits.allowed_s(len(document), is_picture=is_picture(document)))
    for answer in _answers(job, document):
        answers.write(frames.framed(frames.encode(answer)))
        answers.flush()


def _load() -> None:
    """Import what reads, while a file may still be written: Python keeps what it compiled."""
    import charset_normalizer
    import lxml.etree  # type: ignore[import-untyped]  # the package ships no types
    import markdown_it
    import pypdfium2  # type: ignore[import-untyped]  # the package ships no types

    from nagaya.extraction import docx, html, markdown, pdf, pictures, pptx, xlsx

    del charset_normalizer, lxml, markdown_it, pypdfium2, docx, html, markdown, pdf, pictures, pptx, xlsx


def _confine(memory_bytes: int) -> None:
    sys.dont_write_bytecode = True  # what is imported later could not be kept
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which ends this process
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no document in a core dump
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        # Linux: ended with the server, even in the middle of a library's work that never lets the other thread run.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _limit_cpu(seconds: float) -> None:
    """The system ends this process where nobody else does any more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + seconds) + _CPU_GRACE_S
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _listen(source: BinaryIO, pieces: queue.Queue[bytes]) -> None:
    while len(head := source.read(frames.LENGTH.size)) == frames.LENGTH.size:
        (length,) = frames.LENGTH.unpack(head)
        piece = source.read(length)
        if len(piece) < length:
            break
        pieces.put(piece)
    os._exit(0)


def _received(pieces: queue.Queue[bytes]) -> bytes:
    buffer = io.BytesIO()
    while piece := pieces.get():
        buffer.write(piece)
    return buffer.getvalue()  # shares the buffer's memory


def _answers(job: frames.Job, document: bytes) -> Iterator[frames.Answer]:
    try:
        kind, blocks = read(document, name=job.name, media_type=job.media_type, limits=job.limits)
        yield frames.Began(kind)
        if job.strategy is None:
            for batch in _batches(blocks):
                yield frames.Blocks(batch)
        else:
            for chunks in _batches(chunked(blocks, job.strategy)):
                yield frames.Chunks(chunks)
    except Refused as refused:
        yield frames.Failed(refused.reason, refused.about, _peak_bytes())
    except MemoryError:
        yield frames.Failed("too_large", "takes more memory than it may", _peak_bytes())
    except RecursionError:
        yield frames.Failed("corrupt", "nested too deeply", _peak_bytes())
    except Exception as unforeseen:
        # A library gave up in a way of its own. Its words may quote the document; its name does not.
        yield frames.Failed("corrupt", f"unforeseen {type(unforeseen).__name__}", _peak_bytes())
    else:
        yield frames.Done(_peak_bytes())


def _peak_bytes() -> int:
    # Of this program alone: what the system counts for a process begins with what the server had taken when it forked.
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/self/status", "rb") as status:
        return int(next(line for line in status if line.startswith(b"VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    held: list[_Item] = []
    size = 0
    for item in items:
        held.append(item)
        size += len(item.text)
        if size >= _BATCH_CHARACTERS or len(held) >= _BATCH_ITEMS:
            yield held
            held, size = [], 0
    if held:
        yield held


if __name__ == "__main__":
    main(int(sys.argv[1]))
