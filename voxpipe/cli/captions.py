"""`voxpipe captions`: what is said, as a page for OBS or a second screen."""

import os
import sys

import click

from voxpipe.errors import InputError
from voxpipe.service.place import default_socket
from voxpipe.service.signals import signals

ADDRESS = "127.0.0.1:7330"


@click.command(short_help="Show live captions on a web page of this machine.")
@click.argument("source", metavar="[-]", type=click.Choice(["-"]), required=False)
@click.option(
    "--listen", "address", default=ADDRESS, show_default=True, metavar="HOST:PORT", help="Loopback only; port 0: any."
)
@click.option(
    "--stream", "streams", multiple=True, metavar="NAME", help="Show this stream; again for more. [default: all]"
)
def captions(source: str | None, address: str, streams: tuple[str, ...]) -> None:
    """Show live captions on a web page of this machine, for OBS or a second screen.

    They are those of a running `voxpipe serve`, or, with -, of the JSON lines on standard input, which are passed on to
    standard output: … | voxpipe | voxpipe captions -

    The page's address is printed on standard error. It takes ?stream=NAME, ?columns=42, ?lines=3, ?clear=SECONDS (of
    silence, after which the text goes) and ?transparent (for OBS).
    """
    from voxpipe.captions.board import Board
    from voxpipe.captions.feed import DaemonFeed, Feed, LinesFeed
    from voxpipe.captions.server import CaptionServer, read_token, token_file
    from voxpipe.service.web import listen_on, parse_address

    board = Board(streams)
    feed: Feed
    if source is None:
        feed = DaemonFeed(board, default_socket(), streams)
    else:
        if sys.stdin is None or sys.stdin.isatty():
            state = "closed" if sys.stdin is None else "a terminal"
            raise InputError(f"standard input is {state}; pipe events in: … | voxpipe | voxpipe captions -")
        feed = LinesFeed(board, sys.stdin.fileno(), sys.stdout.buffer)
    server = CaptionServer(listen_on(*parse_address(address)), board, read_token(token_file()))

    def report() -> None:
        os.write(2, f"voxpipe: {board.n_live} live streams and {board.n_viewers} pages at {server.url}\n".encode())

    with signals(on_stop=feed.stop, on_flush=lambda: None, on_status=report, wakeup=feed.wakeup.descriptor):
        server.start()
        click.echo(f"voxpipe: captions at {server.url}", err=True)
        try:
            feed.run()
        finally:
            server.close()
