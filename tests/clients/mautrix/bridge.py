"""A bridge built on mautrix, and a server that knows it: registration files, the service itself, and everything that it
is told, in order. People who are not the bridge's use the same library as plain clients.
"""

import asyncio
import itertools
import logging
import time
from pathlib import Path

from mautrix.api import HTTPAPI, Method, Path as ApiPath
from mautrix.appservice import AppService
from mautrix.appservice.state_store import ASStateStore
from mautrix.client import ClientAPI
from mautrix.client.state_store import MemoryStateStore
from mautrix.errors import MatrixStandardRequestError
from mautrix.types import PaginationDirection
from runner import CLOSERS
from server import Server, free_port

DOMAIN = "test.local"
ID = "lighthouse"
BOT = "lighthousebot"
STEM = "lighthouse_"
PASSWORD = "correct horse battery staple"
WAIT_S = 30

_numbers = itertools.count(1)

# What the bridge's own names look like, and a registration that lets it speak for anybody who is here already.
REGISTRATION = f"""\
id: {ID}
url: http://127.0.0.1:{{port}}
as_token: {ID}-as-token
hs_token: {ID}-hs-token
sender_localpart: {BOT}
rate_limited: false
receive_ephemeral: true
de.sorunome.msc2409.push_ephemeral: true
namespaces:
  users:
    - exclusive: true
      regex: '@{STEM}.*:test\\.local'
    - exclusive: true
      regex: '@{BOT}:test\\.local'
  aliases:
    - exclusive: true
      regex: '#{STEM}.*:test\\.local'
"""
DOUBLE_PUPPETING = """\
id: double-puppeting
url: null
as_token: double-puppeting-as-token
hs_token: double-puppeting-hs-token
sender_localpart: double-puppeting
rate_limited: false
namespaces:
  users:
    - exclusive: false
      regex: '@.*:test\\.local'
"""


def fresh_name(stem: str) -> str:
    """A name no other scenario uses."""
    return f"{stem}-{next(_numbers)}"


class Complaints(logging.Handler):
    """What the library could not make sense of."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.heard = []

    def emit(self, record):
        self.heard.append(self.format(record))


class StateStore(MemoryStateStore, ASStateStore):
    """What the bridge believes of rooms, in memory."""

    def __init__(self):
        MemoryStateStore.__init__(self)
        ASStateStore.__init__(self)


class Service(AppService):
    """mautrix's service, which remembers pings, too."""

    def __init__(self, url: str, state_store: StateStore, log: logging.Logger):
        self.pings = []
        super().__init__(
            server=url, domain=DOMAIN, as_token=f"{ID}-as-token", hs_token=f"{ID}-hs-token", bot_localpart=BOT, id=ID,
            state_store=state_store, log=log, bridge_name=ID, ephemeral_events=True,
        )  # fmt: skip
        self.synchronous_handlers = True  # so that events stay in order

    async def _http_ping(self, request):
        self.pings.append((await request.json()).get("transaction_id"))
        return await super()._http_ping(request)


class Stage:
    """A server, and the bridge that it knows."""

    def __init__(self, binary: str, folder: Path):
        folder.mkdir(parents=True)
        self.port = free_port()
        files = []
        for name, text in [("bridge", REGISTRATION.format(port=self.port)), ("double-puppeting", DOUBLE_PUPPETING)]:
            files.append(str(folder / f"{name}.yaml"))
            Path(files[-1]).write_text(text)
        self.server = Server(binary, folder, f"\n[application_services]\nfiles = {files}\n")
        self.state_store = StateStore()
        self.log = logging.getLogger(f"bridge.{folder.name}")
        self.log.propagate = False
        self.complaints = Complaints()
        self.log.addHandler(self.complaints)
        self.service = None
        self.events = []  # in the order in which the bridge was told of them
        self.ephemeral = []
        self.users_asked, self.aliases_asked = [], []
        self.knows_user = self.knows_alias = None

    async def start(self):
        await self.server.start()
        await self.open_bridge()

    async def stop(self):
        if self.service:
            await self.close_bridge()
        await self.server.stop()
        assert not self.complaints.heard, "\n".join(self.complaints.heard)

    def log_tail(self) -> str:
        return self.server.log_tail()

    async def open_bridge(self):
        """The bridge is started, and says so like bridges do."""
        self.service = Service(self.server.url, self.state_store, self.log)
        self.service.query_user = self._query_user
        self.service.query_alias = self._query_alias
        self.service.matrix_event_handler(self._event)
        await self.service.start("127.0.0.1", self.port)
        await self.bot.ensure_registered()
        await self.service.ping_self("hello")

    async def close_bridge(self):
        await self.service.stop()
        self.service = None

    @property
    def bot(self):
        return self.service.intent

    def puppet(self, name: str):
        """The bridge's user of that name."""
        return self.bot.user(f"@{STEM}{name}:{DOMAIN}")

    async def _event(self, event):
        (self.ephemeral if event.type.is_ephemeral else self.events).append(event)

    async def _query_user(self, user_id):
        self.users_asked.append(user_id)
        return self.knows_user and await self.knows_user(user_id)

    async def _query_alias(self, alias):
        self.aliases_asked.append(alias)
        return self.knows_alias and await self.knows_alias(alias)

    def told(self, room_id, kind=None) -> list:
        """What the bridge was told of a room."""
        return [e for e in self.events if e.room_id == room_id and kind in (None, e.type)]

    async def until(self, find, what: str):
        """Waits until `find` finds something; returns that."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if found := find():
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"waited {WAIT_S} s in vain for {what}")

    async def until_told(self, event_id):
        """Waits until the bridge was told of an event; returns that."""
        find = lambda: next((e for e in self.events if getattr(e, "event_id", None) == event_id), None)
        return await self.until(find, f"the bridge to be told of {event_id}")


class Person(ClientAPI):
    """Somebody who has nothing to do with the bridge."""

    @classmethod
    async def registered(cls, stage: Stage, stem: str) -> "Person":
        api = HTTPAPI(stage.server.url)
        CLOSERS.get().append(api.session.close)
        body = {"username": fresh_name(stem), "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        session = await api.request(Method.POST, ApiPath.v3.register, body)
        api.token = session["access_token"]
        return cls(session["user_id"], session["device_id"], api)

    async def newest(self, room_id, limit: int = 30) -> list:
        """The last events of a room, oldest first."""
        page = await self.get_messages(room_id, PaginationDirection.BACKWARD, limit=limit)
        return page.events[::-1]


async def refused(request, kind: type[MatrixStandardRequestError]):
    """Asserts that a request is refused in that way."""
    try:
        answer = await request
    except kind as error:
        return error
    raise AssertionError(f"not refused with {kind.errcode}: {answer}")
