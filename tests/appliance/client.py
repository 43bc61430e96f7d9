"""A person with matrix-nio at a box: talks, and later looks whether everything that the box ever acknowledged is there.

usage: client.py STATE URL talk N | client.py STATE URL check

STATE is a file that remembers who we are, the box's certificate authority, and every event that was acknowledged.
"""

import asyncio
import json
import pathlib
import ssl
import sys
import urllib.request

import nio

USER, PASSWORD = "admin", "correct horse battery"


def authority(url: str) -> str:
    """The box's own authority, as it hands it out to those who come for the first time."""
    anybody = ssl._create_unverified_context()
    with urllib.request.urlopen(f"{url}/ca.pem", context=anybody, timeout=30) as answer:
        return answer.read().decode()


def client(state: dict, url: str) -> nio.AsyncClient:
    """A client that believes the box's authority and nobody else. The name is another one on loopback."""
    context = ssl.create_default_context(cadata=state["authority"])
    context.check_hostname = False
    config = nio.AsyncClientConfig(max_timeouts=20, request_timeout=120)
    return nio.AsyncClient(url, USER, config=config, ssl=context)


def good(answer, kind):
    """The answer, if it is of the kind that is wanted."""
    assert isinstance(answer, kind), f"{kind.__name__} expected, got {answer}"
    return answer


async def enter(person: nio.AsyncClient, state: dict):
    """The device of last time, or a first one with a room."""
    if "token" in state:
        person.restore_login(state["user"], state["device"], state["token"])
        return
    login = good(await person.login(PASSWORD, device_name="journey"), nio.LoginResponse)
    state.update(user=login.user_id, device=login.device_id, token=login.access_token, events=[])
    state["room"] = good(await person.room_create(name="Journey"), nio.RoomCreateResponse).room_id


async def talk(person: nio.AsyncClient, state: dict, count: int):
    """Says so many things; each is remembered once it was acknowledged."""
    for _ in range(count):
        body = f"message {len(state['events'])}"
        sent = await person.room_send(state["room"], "m.room.message", {"msgtype": "m.text", "body": body})
        state["events"].append([good(sent, nio.RoomSendResponse).event_id, body])


async def check(person: nio.AsyncClient, state: dict):
    """Everything that was acknowledged is there, in its order."""
    good(await person.sync(timeout=0), nio.SyncResponse)
    found, start = [], None
    while True:
        page = good(await person.room_messages(state["room"], start, limit=50), nio.RoomMessagesResponse)
        found += [[e.event_id, e.body] for e in page.chunk if isinstance(e, nio.RoomMessageText)]
        if not page.end or page.end == start:
            break
        start = page.end
    found.reverse()
    missing = [event for event in state["events"] if event not in found]
    assert not missing, f"lost: {missing}"
    assert [event for event in found if event in state["events"]] == state["events"], "out of order"
    print(f"{len(state['events'])} messages are all there", flush=True)


async def main(file: pathlib.Path, url: str, what: str, count: int):
    state = json.loads(file.read_text()) if file.exists() else {"authority": authority(url)}
    person = client(state, url)
    try:
        await enter(person, state)
        await (talk(person, state, count) if what == "talk" else check(person, state))
    finally:
        await person.close()
        file.write_text(json.dumps(state))


asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0))
