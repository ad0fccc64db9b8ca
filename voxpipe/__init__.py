"""Streaming speech-to-text for Unix pipes: Voxtral Realtime on MLX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from voxpipe import accelerate as accelerate  # before anything imports MLX
from voxpipe.errors import AudioError as AudioError
from voxpipe.errors import BusyError as BusyError
from voxpipe.errors import InputError as InputError
from voxpipe.errors import ModelError as ModelError
from voxpipe.errors import UsageError as UsageError
from voxpipe.errors import VoxpipeError as VoxpipeError

if TYPE_CHECKING:
    from voxpipe.output.transcript import Delta as Delta
    from voxpipe.output.transcript import Segment as Segment
    from voxpipe.output.transcript import Transcript as Transcript
    from voxpipe.runtime.engine import Engine as Engine
    from voxpipe.runtime.session import StreamingSession as StreamingSession
    from voxpipe.runtime.source import StreamingAudioSource as StreamingAudioSource
    from voxpipe.runtime.transcriber import Transcriber as Transcriber
    from voxpipe.runtime.transcriber import load as load

__version__ = "0.1.0"

# imported when they are first used, so that `voxpipe --help` does not load MLX
_LAZY = {
    "Delta": "voxpipe.output.transcript",
    "Engine": "voxpipe.runtime.engine",
    "Segment": "voxpipe.output.transcript",
    "StreamingAudioSource": "voxpipe.runtime.source",
    "StreamingSession": "voxpipe.runtime.session",
    "Transcriber": "voxpipe.runtime.transcriber",
    "Transcript": "voxpipe.output.transcript",
    "load": "voxpipe.runtime.transcriber",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'voxpipe' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
