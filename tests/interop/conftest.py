"""One node for all browser tests: two relays, two transceivers and the echo backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import ECHO, Node, running_node
from tests.support.speech import SENTENCE, Samples, speak, write_wav


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    with running_node(relays=2, transceivers=2, backend_commands={"echo": ECHO}) as running:
        yield running


@pytest.fixture(scope="session")
def speech() -> Samples:
    """What Chromium's microphone says, again and again."""
    return speak(SENTENCE)


@pytest.fixture(scope="session")
def speech_wav(speech: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("speech") / "sentence.wav", speech)
