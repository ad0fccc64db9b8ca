"""Options that several commands share."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from voxpipe.config import DELAYS_MS, delay_tokens
from voxpipe.errors import UsageError

if TYPE_CHECKING:
    from voxpipe.runtime.transcriber import Transcriber

Command = Callable[..., Any]


class Delay(click.ParamType[int]):
    """A transcription delay in milliseconds that the model knows."""

    name = "ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            delay_ms = int(value)
            delay_tokens(delay_ms)
        except UsageError as exc:
            self.fail(str(exc), param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not a number of milliseconds", param, ctx)
        return delay_ms


def model_options(command: Command) -> Command:
    """Add --model, --dtype and --delay."""
    command = click.option(
        "--delay",
        "delay_ms",
        type=Delay(),
        help=f"Transcription delay: {DELAYS_MS[0]} to {DELAYS_MS[-2]} in steps of 80, or {DELAYS_MS[-1]}. [default: 480]",
    )(command)
    command = click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16", "f32"]),
        help="Precision of the arithmetic. [default: the checkpoint's on a GPU, f32 on the CPU]",
    )(command)
    return click.option(
        "--model",
        metavar="NAME|DIR|REPO",
        help="tiny, 4bit, fp16, bf16, a directory, or OWNER/NAME on the hub. "
        "[default: $VOXPIPE_MODEL, else 4bit if it was pulled, else tiny]",
    )(command)


def load_model(model: str | None, dtype: str | None, *, fetch: bool = True) -> "Transcriber":
    """Load what --model names, or $VOXPIPE_MODEL, which is never fetched, or "auto".

    Args:
        fetch: whether a repository that --model names may be fetched.
    """
    from voxpipe.checkpoints.hub import resolve
    from voxpipe.runtime.transcriber import load_choice

    from_environment = os.environ.get("VOXPIPE_MODEL") or "auto"
    choice = resolve(model, fetch=fetch) if model is not None else resolve(from_environment, fetch=False)
    return load_choice(choice, dtype=dtype)
