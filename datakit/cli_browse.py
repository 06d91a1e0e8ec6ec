"""The verb `datakit browse`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .arguments import say
from .errors import DatakitError
from .remote import Remote, root_of

Verbs = Any  # argparse names this class with an underscore
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")  # one of them is set where windows can be opened


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    browse = verbs.add_parser(
        "browse", help="look at a build in the browser: what was kept, what was left out, and why"
    )
    browse.add_argument("out", type=root_of, metavar="OUT", help="folder of a build")
    browse.add_argument("--port", type=port, default=0, metavar="N", help="of 127.0.0.1 (default: any that is free)")
    browse.add_argument("--no-open", action="store_true", help="print the address, and open no browser")
    browse.set_defaults(run=run_browse)


def port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 to 65535")
    return int(text)


def run_browse(args: argparse.Namespace) -> int:
    from .browse.server import serve

    if isinstance(args.out, Remote):
        raise DatakitError(f"{args.out}: browse reads a folder of this machine: fetch the build first")
    server = serve(args.out, args.port, say)
    about = server.answers.about()
    say(f"{about['name']}: {about['kept']:,} kept, {about['dropped']:,} left out. Ctrl-C ends this")
    print(server.url, flush=True)
    if not args.no_open and (sys.platform != "linux" or any(map(os.environ.get, DISPLAYS))):
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.run()
    except KeyboardInterrupt:
        say("ended")
    return 0
