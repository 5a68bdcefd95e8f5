#!/usr/bin/env python3
"""A balloon agent for memvisor: the agent's side of docs/balloon-protocol.md, version 1.

It needs nothing but Python. A guest starts it (`memvisor guest --agent 'python3 balloon_agent.py'`)
and lends it pages over standard input and output, as docs/balloon-lab.md has it; the class Guest is
all that an agent of another kind of guest would replace.
"""

import os
import select
import socket
import struct
import sys
import time

VERSION = 1
START, GET_TARGET, LOCK, UNLOCK, STATS, RELIEF, STOP = range(1, 8)
STARTED, TARGET, LOCK_RESULT, UNLOCK_RESULT = 0x8001, 0x8002, 0x8003, 0x8004
STOPPED, RESET, ERROR = 0x8007, 0x8008, 0x80FF
BATCHED, DOORBELL, HAS_STATS, HAS_RELIEF = 1, 2, 4, 8
OK, ALREADY_LOCKED, NOT_LOCKED = 0, 2, 3
REFUSED = 4

MOST_PAGES = 4096  # in a batch
MOST_STATS = 32
GAP = 512  # pages over a target that are not worth the way
REPLY_TIMEOUT = 10  # seconds


class Lost(Exception):
    """The connection is of no use any more; `refused` if the host does not want this agent."""

    def __init__(self, why, refused=False):
        super().__init__(why)
        self.refused = refused


class Reset(Exception):
    """The host has emptied the balloon: both sides start anew."""


class Left(Exception):
    """The guest ends."""


class Guest:
    """The guest that started this program, at the other end of standard input and output."""

    def __init__(self):
        self.pending = b""
        self.wanted = 0  # pages that would relieve it
        self.is_leaving = False

    def _read(self):
        data = os.read(0, 65536)
        if not data:
            self.is_leaving = True
        self.pending += data

    def _lines(self):
        """The whole lines that have come, without those that are said unasked."""
        while b"\n" in self.pending:
            line, self.pending = self.pending.split(b"\n", 1)
            words = line.decode().split()
            if words[:1] == ["relief"]:
                self.wanted = int(words[1])
            else:
                yield words

    def listen(self):
        """Reads what the guest says unasked; call it when standard input is readable."""
        self._read()
        for words in self._lines():
            print("balloon_agent: unexpected:", *words, file=sys.stderr)

    def _ask(self, line):
        os.write(1, line.encode() + b"\n")
        while not self.is_leaving:
            for words in self._lines():
                if words[:1] == ["ok"]:
                    return words[1:]
                print("balloon_agent: the guest says", *words, file=sys.stderr)
                return []
            self._read()
        raise Left

    def total(self):
        return int(self._ask("total")[0])

    def stats(self):
        pairs = (word.split("=") for word in self._ask("stats"))
        return [(int(tag), int(value)) for tag, value in pairs][:MOST_STATS]

    def pin(self, pages):
        """Up to that many pages that nobody uses, as a list of numbers."""
        runs = (word.split("+") for word in self._ask("pin %d reclaim" % pages))
        return [page for start, count in runs for page in range(int(start), int(start) + int(count))]

    def unpin(self, pages):
        """Lets the guest use pages again. A guest that ends takes them anyway."""
        for start in range(0, len(pages), MOST_PAGES):
            part = pages[start : start + MOST_PAGES]
            try:
                self._ask("unpin " + " ".join("%d+%d" % run for run in runs_of(part)))
            except Left:
                return


def runs_of(pages):
    """Pages in the fewest runs, ascending: (start, count)."""
    runs = []
    for page in sorted(pages):
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


class Session:
    """A connection to the host."""

    def __init__(self, path):
        self.host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host.settimeout(REPLY_TIMEOUT)
        self.seq = 0
        self.target = 0
        try:
            self.host.connect(path)
        except OSError as error:
            raise Lost(str(error)) from None

    def tell(self, kind, body=b""):
        self.seq = self.seq % 0xFFFFFFFF + 1
        version = 0 if kind == START else VERSION
        try:
            self.host.send(struct.pack("<HHI", version, kind, self.seq) + body)
        except OSError as error:
            raise Lost(str(error)) from None

    def hear(self):
        """The next message: its type, sequence number and body."""
        try:
            message = self.host.recv(65536)
        except OSError as error:
            raise Lost(str(error)) from None
        if not message:
            raise Lost("the host has closed the connection")
        _, kind, seq = struct.unpack_from("<HHI", message)
        if kind == RESET:
            raise Reset
        if kind == ERROR:
            (code,) = struct.unpack_from("<H", message, 8)
            raise Lost(message[12:].decode(errors="replace"), code == REFUSED)
        if kind == TARGET and seq == 0:
            (self.target,) = struct.unpack_from("<Q", message, 8)
        return kind, seq, message[8:]

    def ask(self, kind, answer, body=b""):
        self.tell(kind, body)
        while True:
            found, seq, reply = self.hear()
            if seq == self.seq and found == answer:
                return reply
            if seq != 0:
                raise Lost("the host answers with type %#x" % found)

    def start(self, token, total, name):
        self.target = 0
        offer = BATCHED | DOORBELL | HAS_STATS | HAS_RELIEF
        name = name.encode()[:64].decode(errors="ignore").encode()
        body = struct.pack("<HHIQQH", VERSION, VERSION, offer, token, total, len(name)) + name
        reply = self.ask(START, STARTED, body)
        self.uses, _, poll, self.max_ranges, _ = struct.unpack("<IIIIQ", reply)
        self.poll = poll / 1000

    def ask_target(self, kind, body):
        (self.target,) = struct.unpack("<Q", self.ask(kind, TARGET, body))

    def move(self, kind, pages):
        """Locks or unlocks pages, at most a batch. What became of each: {page: status}."""
        runs, became = runs_of(pages), {}
        for first in range(0, len(runs), self.max_ranges):
            part = runs[first : first + self.max_ranges]
            body = struct.pack("<I", len(part)) + b"".join(struct.pack("<II", *run) for run in part)
            answer = LOCK_RESULT if kind == LOCK else UNLOCK_RESULT
            reply = self.ask(kind, answer, body)
            self.target, count = struct.unpack_from("<QI", reply)
            for at in range(count):
                start, length, status = struct.unpack_from("<III", reply, 12 + 12 * at)
                became.update((page, status) for page in range(start, start + length))
        return became


class Agent:
    def __init__(self, guest, path, token, name):
        self.guest, self.path, self.token, self.name = guest, path, token, name
        self.held = []  # pages in the balloon, the latest last

    def inflate(self, session):
        while session.target > len(self.held):
            pages = self.guest.pin(min(session.target - len(self.held), MOST_PAGES))
            # Those that the host may have taken are kept, even if the connection breaks meanwhile.
            before = len(self.held)
            self.held += pages
            became = session.move(LOCK, pages)
            taken = [page for page in pages if became.get(page) in (OK, ALREADY_LOCKED)]
            self.held[before:] = taken
            refused = set(pages).difference(taken)
            if refused:
                self.guest.unpin(list(refused))
            if refused or not pages:
                return  # the host or the guest has had enough for this poll

    def deflate(self, session, gap):
        while len(self.held) > session.target and len(self.held) - session.target >= gap:
            pages = self.held[-min(len(self.held) - session.target, MOST_PAGES) :]
            became = session.move(UNLOCK, pages)
            free = {page for page in pages if became.get(page) in (OK, NOT_LOCKED)}
            self.held = [page for page in self.held if page not in free]
            if free:
                self.guest.unpin(list(free))
            if len(free) < len(pages):
                return  # the host keeps some for now

    def adjust(self, session):
        self.inflate(session)
        self.deflate(session, GAP if session.target else 1)

    def release_all(self):
        held, self.held = self.held, []
        if held:
            self.guest.unpin(held)

    def relieve(self, session):
        pages, self.guest.wanted = self.guest.wanted, 0
        if session.uses & HAS_RELIEF and self.held:
            session.ask_target(RELIEF, struct.pack("<Q", pages))
            self.deflate(session, 1)

    def converse(self, session):
        """Polls, and does what the host and the guest say in between, until the guest ends."""
        try:
            self.follow(session)
        except Left:
            session.ask(STOP, STOPPED)
            raise

    def follow(self, session):
        due = time.monotonic()
        while True:
            if self.guest.is_leaving:
                raise Left
            if self.guest.wanted:
                self.relieve(session)
            if time.monotonic() >= due:
                due = time.monotonic() + session.poll
                if session.uses & HAS_STATS:
                    stats = self.guest.stats()
                    body = b"".join(struct.pack("<HQ", *stat) for stat in stats)
                    session.tell(STATS, struct.pack("<I", len(stats)) + body)
                size = struct.pack("<QQ", self.guest.total(), len(self.held))
                session.ask_target(GET_TARGET, size)
            self.adjust(session)
            left = max(0, due - time.monotonic())
            ready, _, _ = select.select([session.host, 0], [], [], left)
            if session.host in ready:
                session.hear()
            if 0 in ready:
                self.guest.listen()

    def rest(self, pause):
        """Waits before the next connection, and leaves when the guest does."""
        end = time.monotonic() + pause
        while time.monotonic() < end:
            ready, _, _ = select.select([0], [], [], max(0, end - time.monotonic()))
            if ready:
                self.guest.listen()
            if self.guest.is_leaving:
                raise Left
            self.guest.wanted = 0  # there is nothing to relieve it with

    def run(self):
        pause = 0.1
        while True:
            try:
                session = Session(self.path)
                while True:
                    session.start(self.token, self.guest.total(), self.name)
                    pause = 0.1
                    try:
                        self.converse(session)
                    except Reset:
                        self.release_all()
            except (Lost, Reset) as error:
                self.release_all()
                print("balloon_agent:", error or "reset", file=sys.stderr)
                self.rest(pause)
                longest = 30 if getattr(error, "refused", False) else 10
                pause = min(2 * pause, longest)


def main():
    try:
        path = os.environ["MEMVISOR_BALLOON_SOCKET"]
        token = int(os.environ["MEMVISOR_BALLOON_TOKEN"], 16)
    except KeyError as missing:
        sys.exit("balloon_agent: %s is not set: a guest starts this program" % missing)
    name = os.environ.get("MEMVISOR_BALLOON_NAME", "python")
    try:
        Agent(Guest(), path, token, name).run()
    except Left:
        pass  # what is still pinned is the guest's again when this program ends


if __name__ == "__main__":
    main()
