"""httpx alone, as many programs use it: the 413 for a body that is too large is read each time.

A server that answers early and closes makes the system reset the connection, and the reset destroys the answer. httpx sends
its whole request before it reads, so it saw `ReadError` or `WriteError` where there was a 413.
"""

import os
import sys
import traceback

import httpx

URL = os.environ["GATEWAY_URL"]
# Another gateway, whose limit for uploads is a megabyte.
LIMITED_URL = os.environ["LIMITED_URL"]
HEADERS = {"authorization": f"Bearer {os.environ['GATEWAY_KEY']}"}

# 12 MB, more than the limit for JSON.
JSON = b'{"model":"gpt-5-mini","messages":[{"role":"user","content":"' + b"river " * 2_000_000 + b'"}]}'
TIMES = 20
PIECE = 64 * 1024


def pieces():
    return (JSON[at : at + PIECE] for at in range(0, len(JSON), PIECE))


def chat(client, **body):
    return client.post(f"{URL}/v1/chat/completions", headers=HEADERS, **body)


def held(client):
    return chat(client, content=JSON)


def in_pieces(client):
    # Without a length: it is known to be too large once that much has come.
    return chat(client, content=pieces())


def form(client):
    file = ("river.wav", JSON, "audio/wav")
    return client.post(
        f"{LIMITED_URL}/v1/audio/transcriptions", headers=HEADERS, data={"model": "m"}, files={"file": file}
    )


def read(send, client):
    answer = send(client)
    assert answer.status_code == 413, answer
    assert answer.json()["error"]["message"], answer.text
    assert answer.headers["x-should-retry"] == "false", answer.headers
    # Raises if the connection was closed: only a request that was read to its end leaves it usable.
    return answer.extensions["network_stream"].get_extra_info("client_addr")


def on_new_connections(send):
    for _ in range(TIMES):
        with httpx.Client(timeout=60) as client:
            read(send, client)


def on_kept_connections(send):
    with httpx.Client(timeout=60) as client:
        connections = {read(send, client) for _ in range(TIMES)}
    assert len(connections) == 1, connections


failed = 0
for run in (on_new_connections, on_kept_connections):
    for send in (held, in_pieces, form):
        name = f"{send.__name__} {run.__name__}"
        try:
            run(send)
        except Exception:
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"ok {name}")
sys.exit(1 if failed else 0)
