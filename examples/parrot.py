"""Waits until you stop speaking, then says it back; stops when you interrupt.

Usage: python parrot.py /path/to/parrot.sock

It shows the three things that a voice agent needs of the edge: to know when a
turn ends, to speak without pacing, and, when the person barges in, to be
silent at once and to learn how much of the answer was really heard. A voice
agent would cut its memory there; the parrot tells the browser in an event.
"""

from __future__ import annotations

import array
import asyncio
import logging
import sys

import earshot_backend as earshot

RATE = 24000  # both ways: what is said back is what was heard
START_MS = 60  # of voice begin a turn: shorter is a click
HANG_OVER_MS = 600  # of silence end it: shorter is a pause for breath
PRE_ROLL_MS = 200  # kept from before the start, for soft first consonants
LONGEST_MS = 30_000  # then it answers without waiting for the end


def ms(pcm: bytes | bytearray) -> int:
    return len(pcm) // 2 * 1000 // RATE


class VoiceDetector:
    """Tells speech from silence by loudness over a noise floor that it learns."""

    def __init__(self) -> None:
        self.speaking = False
        self._floor = 30.0  # mean absolute sample value
        self._against_ms = 0  # for so long the sound has contradicted `speaking`

    def hear(self, pcm: bytes) -> bool | None:
        """True: a turn began with this frame; False: it ended; None: nothing changed."""
        level = sum(map(abs, array.array("h", pcm))) / max(1, len(pcm) // 2)
        voiced = level > max(300.0, 4 * self._floor)
        if voiced:  # slowly, or noise that has come to stay would count as speech for ever
            self._floor *= 1.002
        else:
            self._floor += 0.05 * (max(level, 1.0) - self._floor)
        self._against_ms = self._against_ms + ms(pcm) if voiced != self.speaking else 0
        if self._against_ms < (HANG_OVER_MS if self.speaking else START_MS):
            return None
        self.speaking, self._against_ms = voiced, 0
        return voiced


class Parrot:
    """One call."""

    def __init__(self, call: earshot.Call) -> None:
        self.call = call
        self.detector = VoiceDetector()
        self.edge_detects = False  # later versions of the edge send SPEECH: better than ours
        self.listening = False
        self.heard = bytearray()
        self.saying: asyncio.Task[None] | None = None

    async def run(self) -> None:
        async for frame in self.call:
            if isinstance(frame, earshot.Audio):
                self.hear(frame.pcm)
            elif isinstance(frame, earshot.Speech):
                self.edge_detects = True
                self.turn(frame.started)
            elif isinstance(frame, earshot.Cleared):
                logging.info(
                    "%s: silent; %d samples of generation %d had been heard",
                    self.call.id, frame.heard_samples, frame.generation,
                )  # fmt: skip
        if self.saying is not None:
            await self.saying

    def hear(self, pcm: bytes) -> None:
        self.heard += pcm
        change = None if self.edge_detects else self.detector.hear(pcm)
        if change is not None:
            self.turn(change)
        elif self.listening and ms(self.heard) >= LONGEST_MS:
            self.turn(False)
        if not self.listening:
            keep_ms = PRE_ROLL_MS + START_MS
            del self.heard[: -keep_ms * RATE // 1000 * 2]

    def turn(self, began: bool) -> None:
        """The person began to speak, or has finished."""
        if began == self.listening:
            return
        self.listening = began
        if began:
            if self.saying is not None and not self.saying.done():
                self.call.clear()  # barge-in; say() sees it as an interruption
            self.call.send_event({"type": "parrot.listening"})
        else:
            self.saying = asyncio.create_task(self.say(bytes(self.heard)))

    async def say(self, pcm: bytes) -> None:
        self.call.send_event({"type": "parrot.saying", "ms": ms(pcm)})
        async with self.call.utterance() as said:
            await said.play(pcm)
        outcome = "interrupted" if said.interrupted else "said"
        logging.info(
            "%s: %s, %d of %d ms were heard", self.call.id, outcome, said.heard_ms, ms(pcm)
        )
        self.call.send_event(
            {
                "type": f"parrot.{outcome}",
                "ms": ms(pcm),
                "heard_ms": said.heard_ms,
                "heard_samples": said.heard,
                "generation": self.call.generation,
            }
        )


async def talk(call: earshot.Call) -> None:
    await Parrot(call).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="parrot: %(message)s")
    earshot.run(talk, sys.argv[-1], rate_in=RATE, rate_out=RATE)
