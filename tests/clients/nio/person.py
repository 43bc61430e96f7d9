"""A person at a matrix-nio client: logs in, syncs, and remembers everything the server showed, in order."""

import asyncio
import itertools
import json
import time
from urllib.parse import quote

from nio import AsyncClient, AsyncClientConfig, LoginResponse, RegisterResponse, SyncResponse
from runner import CLOSERS

PASSWORD = "correct horse battery staple"
WAIT_S = 20

_numbers = itertools.count(1)


def path_of(*parts: str) -> str:
    """A client API path with every part encoded."""
    return "/_matrix/client/v3/" + "/".join(quote(part, safe="") for part in parts)


def fresh_name(stem: str) -> str:
    """A name no other scenario uses."""
    return f"{stem}-{next(_numbers)}"


class Person:
    def __init__(self, server, name: str):
        config = AsyncClientConfig(max_limit_exceeded=0, max_timeouts=None, max_timeout_retry_wait_time=0.5)
        self.server = server
        self.name = name
        self.client = AsyncClient(server.url, name, config=config)
        self.filter = {"room": {"timeline": {"limit": 100}}}
        self.timelines = {}  # room -> events in the order they came
        self.state_seen = {}  # room -> events of the state section
        self.syncs = []
        CLOSERS.get().append(self.client.close)

    @property
    def id(self) -> str:
        return self.client.user_id

    async def register(self) -> "Person":
        """A new account."""
        answer = await self.client.register(self.name, PASSWORD, device_name="tests")
        expect(answer, RegisterResponse)
        return self

    async def log_in(self) -> "Person":
        """A new device of an existing account."""
        expect(await self.client.login(PASSWORD, device_name="another device"), LoginResponse)
        return self

    def restored(self) -> "Person":
        """The same device again, from its stored token, in a client that knows nothing else."""
        again = Person(self.server, self.name)
        again.client.restore_login(self.client.user_id, self.client.device_id, self.client.access_token)
        return again

    async def sync(self, timeout_ms: int = 0, **options) -> SyncResponse:
        answer = await self.client.sync(timeout=timeout_ms, sync_filter=self.filter, **options)
        expect(answer, SyncResponse)
        self.syncs.append(answer)
        for rooms in (answer.rooms.join, answer.rooms.leave):
            for room_id, room in rooms.items():
                self.timelines.setdefault(room_id, []).extend(room.timeline.events)
                self.state_seen.setdefault(room_id, []).extend(room.state)
        return answer

    async def until(self, find, what: str = "", wait_s: float = WAIT_S):
        """Syncs until `find` likes a response; returns what it found."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            found = find(await self.sync(timeout_ms=2000))
            if found:
                return found
        raise AssertionError(f"{self.name} waited {wait_s} s in vain for {what or 'a sync response'}")

    async def until_event(self, room_id: str, event_id: str):
        """Syncs until the event stands in the room's timeline."""
        seen = lambda: next((e for e in self.timelines.get(room_id, []) if e.event_id == event_id), None)
        return seen() or await self.until(lambda _: seen(), f"{event_id} in {room_id}")

    def bodies(self, room_id: str) -> list:
        """Bodies of the messages seen in a room, in the order they came."""
        return [e.body for e in self.timelines.get(room_id, []) if hasattr(e, "body")]

    async def say(self, room_id: str, body: str, txn_id: str = None) -> str:
        """Sends a text; returns the event id."""
        content = {"msgtype": "m.text", "body": body}
        answer = await self.client.room_send(room_id, "m.room.message", content, tx_id=txn_id)
        assert getattr(answer, "event_id", None), answer
        return answer.event_id

    async def raw(self, method: str, path: str, body=None, status: int = 200):
        """A request that the client library has no call for."""
        headers = {"Authorization": f"Bearer {self.client.access_token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        answer = await self.client.send(method, path, data, headers)
        text = await answer.text()
        assert answer.status == status, f"{method} {path}: {answer.status} {text}"
        return json.loads(text)


def expect(answer, kind):
    """The answer, which must be of the kind given."""
    assert isinstance(answer, kind), f"wanted {kind.__name__}, got {answer!r}"
    return answer


async def people(server, *names: str) -> list:
    """New accounts, registered at the same time."""
    return await asyncio.gather(*(Person(server, fresh_name(name)).register() for name in names))
