"""The smallest backend: you hear yourself. Usage: python echo.py /path/to/echo.sock

24 kHz both ways: what echoes must not be resampled, 12 kHz of bandwidth is
all of a voice, and it is the rate that most speech models speak. The edge
decodes Opus straight at this rate.
"""

from __future__ import annotations

import logging
import sys

import earshot_backend as earshot


async def talk(call: earshot.Call) -> None:
    logging.info("%s begins", call.id)
    async for frame in call:
        if isinstance(frame, earshot.Audio):
            await call.play(frame.pcm)
        elif isinstance(frame, earshot.Event):
            call.send_event(frame.data)
    logging.info("%s ends: %s", call.id, call.reason)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="echo: %(message)s")
    earshot.run(talk, sys.argv[-1], rate_in=24000, rate_out=24000)
