"""What the router of an ingress writes and the ingress reads, in one process.

It lies here and not in `router.py`: Serve pickles the router's own module by value, so that its globals would be copies that
nobody else sees. Read and write it through this module (`shared.LOADS`), never by a name imported from it there.
"""

from __future__ import annotations

from collections import OrderedDict

from reasonscale.serving.routing import Loads

# The router runs on the ingress' own loop (`config.INGRESS_ENV`); read by whole assignments all the same.
LOADS: dict[str, Loads] = {}  # by deployment
READY: dict[str, int] = {}  # replicas that take requests, by deployment
PLACED: OrderedDict[str, tuple[str, float]] = OrderedDict()  # a request's unique id -> its replica, and since when
PLACED_MOST = 100_000
