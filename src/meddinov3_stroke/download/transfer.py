"""Getting one file from one source: resume, retry, and stop when it lies."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx

from meddinov3_stroke.download.answers import Answer, ask, range_headers, read_head
from meddinov3_stroke.download.contents import refuse_impostor
from meddinov3_stroke.download.failures import SourceFailed
from meddinov3_stroke.download.limits import Limits
from meddinov3_stroke.download.part_file import PartFile, PartNote
from meddinov3_stroke.download.record import Expected
from meddinov3_stroke.download.sources import Source
from meddinov3_stroke.errors import StorageError
from meddinov3_stroke.system.progress import Held

LOGGER = logging.getLogger("meddinov3_stroke")


@dataclass(frozen=True, eq=False)
class Transfer:
    """One source's bytes on their way into a part file."""

    client: httpx.Client
    source: Source
    part: PartFile
    expected: Expected | None
    limits: Limits
    report: Held

    def run(self) -> PartNote:
        """What the server said of the file, all of whose bytes are now in the part file.

        Raises:
            SourceFailed: the source gave up on us, or we on it.
            StorageError: the disk is too small for the file.
        """
        best = fruitless = 0
        for _ in range(self.limits.most_attempts):
            try:
                return self._attempt()
            except SourceFailed as failure:
                if failure.spoiled:
                    self.part.discard()
                if not failure.retryable:
                    raise
                fruitless = 0 if self.part.size > best else fruitless + 1
                best = max(best, self.part.size)
                if fruitless > self.limits.retries:
                    raise
                self._wait(failure, fruitless)
        raise SourceFailed(f"not finished after {self.limits.most_attempts} attempts")

    def _attempt(self) -> PartNote:
        note = self.part.resumable(self.source.key)
        start = self.part.size if note else 0
        if note and note.total == start:
            return note
        headers = range_headers(start, note.validator) if note else {}
        with ask(self.client, self.source, headers, self.limits) as answer:
            self._admit(answer)
            chunks = _unless_trickling(answer.response.iter_raw(), self.limits)
            if answer.start == 0:
                head = read_head(chunks)
                refuse_impostor(head)  # before any byte held is given up for it
                note = self._start_anew(answer)
                chunks = itertools.chain([head], chunks)
            elif note is None or not _continues(answer, start, note):
                raise SourceFailed("the file changed between two attempts", retryable=True, spoiled=True)
            self._receive(chunks, answer.start, note)
        return note

    def _admit(self, answer: Answer) -> None:
        most, total = self.limits.most_bytes, answer.total
        if total is not None and total > most:
            raise SourceFailed(f"too large: {total} bytes, expected at most {most}")
        expected, stated = self.expected, answer.stated_sha256
        if expected and stated and stated != expected.sha256:
            raise SourceFailed(f"it offers sha256 {stated}, expected {expected.sha256} ({expected.origin})")
        if not (answer.ends or expected or stated):
            raise SourceFailed("it states no length, so a whole file could not be told from a cut one; pin its sha256")
        if total is not None:
            self._require_space(total)

    def _require_space(self, total: int) -> None:
        free = shutil.disk_usage(self.part.path.parent).free
        if total - self.part.size > free:
            raise StorageError(
                f"cannot write {self.part.target}: found {free} bytes free, expected {total - self.part.size}; "
                "free space, or name another place with --output"
            )

    def _start_anew(self, answer: Answer) -> PartNote:
        if self.part.size:
            LOGGER.info("%s: what an earlier attempt left cannot be resumed; starting again", self.source.name)
        note = PartNote(str(self.source), self.source.key, answer.validator, answer.total, answer.stated_sha256)
        self.part.start(note)
        return note

    def _receive(self, chunks: Iterable[bytes], held: int, note: PartNote) -> None:
        most = self.limits.most_bytes if note.total is None else note.total
        with self.part.append() as handle:
            self.report(held, note.total)
            for chunk in chunks:
                held += len(chunk)
                if held > most:
                    raise SourceFailed(f"it sends more than the {most} bytes expected", spoiled=True)
                handle.write(chunk)
                handle.flush()  # a killed process loses nothing that has arrived
                self.report(held, note.total)
        if note.total is not None and held < note.total:
            raise SourceFailed(f"it stopped after {held} of {note.total} bytes", retryable=True)

    def _wait(self, failure: SourceFailed, fruitless: int) -> None:
        wait_s = max(failure.wait_s, self.limits.backoff_s * 2 ** max(fruitless - 1, 0))
        if failure.wait_s > self.limits.longest_wait_s:
            raise SourceFailed(f"{failure}; it asks to wait {failure.wait_s:.0f} s") from failure
        LOGGER.info("%s: %s; trying again in %.1f s", self.source.name, failure, wait_s)
        time.sleep(wait_s)


def _continues(answer: Answer, start: int, note: PartNote) -> bool:
    same_total = answer.total is None or note.total is None or answer.total == note.total
    same_file = answer.validator is None or answer.validator == note.validator
    return answer.start == start and same_total and same_file


def _unless_trickling(chunks: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    """The chunks, as long as they come faster than `slowest_rate` over every `stall_s`."""
    since, received = time.monotonic(), 0
    for chunk in chunks:
        received += len(chunk)
        elapsed = time.monotonic() - since
        if elapsed > limits.stall_s:
            if received < limits.slowest_rate * elapsed:
                raise SourceFailed(f"too slow: {received} bytes in {elapsed:.0f} s", retryable=True)
            since, received = time.monotonic(), 0
        yield chunk
