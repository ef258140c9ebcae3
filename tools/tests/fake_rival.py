#!/usr/bin/env python3
"""A server that speaks as much of Valkey's or Redis's cluster protocol as `antumbra bench move --rival` asks for.

It is no store: it shows that the benchmark gives the right orders, follows the migration and finds what was lost. With
FAKE_RIVAL_LOSES=1 it forgets the keys that it hands over.
"""
import asyncio
import binascii
import os
import sys

if "--version" in sys.argv:
    print("Fake server v=0.0.1 sha=0")
    sys.exit()
PORT = int(sys.argv[sys.argv.index("--port") + 1])
rows, owned, peers, migration, leaving = {}, set(), {}, {}, set()


def slot_of(key):
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    if start >= 0 and end > start + 1:
        key = key[start + 1:end]
    return binascii.crc_hqx(key, 0) % 16384


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def listed(items):
    return b"*%d\r\n" % len(items) + b"".join(items)


def moved(key):
    slot = slot_of(key)
    if slot not in owned:
        return b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, next(iter(peers)))


async def read_command(reader):
    count = int((await reader.readline())[1:] or 0)
    words = []
    for _ in range(count):
        size = int((await reader.readline())[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


async def ask(port, *words):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(listed([bulk(word) for word in words]))
    line = await reader.readline()
    writer.close()
    return line


async def hand_over(slot, port):
    migration.update(state=b"snapshotting")
    await asyncio.sleep(0.3)
    migration.update(state=b"failover-paused" if migration["valkey"] else b"takeover")
    # Whoever asks for the slot waits from here on.
    leaving.add(slot)
    keys = [key for key in rows if slot_of(key) == slot]
    lost = os.environ.get("FAKE_RIVAL_LOSES") == "1"
    for first in range(0, len(keys), 500):
        pairs = [word for key in keys[first:first + 500] for word in (key, rows[key])]
        await ask(port, b"FAKE.TAKE", b"%d" % slot, *([] if lost else pairs))
    owned.discard(slot)
    leaving.discard(slot)
    migration.update(state=b"success" if migration["valkey"] else b"completed")


async def answer(words):
    name = words[0].upper()
    while leaving and name in (b"GET", b"SET", b"MGET", b"MSET") and slot_of(words[1]) in leaving:
        await asyncio.sleep(0.001)
    sub = words[1].upper() if len(words) > 1 else b""
    if name == b"SET":
        rows_or = moved(words[1])
        if rows_or is None:
            rows[words[1]] = words[2]
        return rows_or or b"+OK\r\n"
    if name == b"GET":
        return moved(words[1]) or bulk(rows.get(words[1]))
    if name == b"MSET":
        if error := moved(words[1]):
            return error
        rows.update(zip(words[1::2], words[2::2]))
        return b"+OK\r\n"
    if name == b"MGET":
        return moved(words[1]) or listed([bulk(rows.get(key)) for key in words[1:]])
    if name == b"FAKE.TAKE":
        owned.add(int(words[1]))
        rows.update(zip(words[2::2], words[3::2]))
        return b"+OK\r\n"
    if name == b"FAKE.GIVE":
        migration.update(state=b"connecting", valkey=False)
        await hand_over(int(words[1]), int(words[2]))
        return b"+OK\r\n"
    if name == b"FAKE.PEER":
        peers[int(words[1])] = True
        return b"+OK\r\n"
    if (name, sub) == (b"CLUSTER", b"ADDSLOTSRANGE"):
        owned.update(range(int(words[2]), int(words[3]) + 1))
        return b"+OK\r\n"
    if (name, sub) == (b"CLUSTER", b"MEET"):
        peers[int(words[3])] = True
        await ask(int(words[3]), b"FAKE.PEER", b"%d" % PORT)
        return b"+OK\r\n"
    if (name, sub) == (b"CLUSTER", b"INFO"):
        return bulk(b"cluster_state:ok\r\ncluster_known_nodes:%d\r\n" % (1 + len(peers)))
    if (name, sub) == (b"CLUSTER", b"MYID"):
        return bulk(b"node-%d" % PORT)
    if (name, sub) == (b"CLUSTER", b"MIGRATESLOTS"):
        assert words[2] == b"SLOTSRANGE" and words[3] == words[4] and words[5] == b"NODE", words
        migration.update(state=b"connecting", valkey=True)
        migration["task"] = asyncio.ensure_future(hand_over(int(words[3]), int(words[6].split(b"-")[1])))
        return b"+OK\r\n"
    if (name, sub) == (b"CLUSTER", b"MIGRATION") and words[2].upper() == b"IMPORT":
        migration.update(state=b"connecting")

        async def pull():
            await ask(next(iter(peers)), b"FAKE.GIVE", words[3], b"%d" % PORT)
            migration.update(state=b"completed")

        migration["task"] = asyncio.ensure_future(pull())
        return bulk(b"task-1")
    if (name, sub) in ((b"CLUSTER", b"GETSLOTMIGRATIONS"), (b"CLUSTER", b"MIGRATION")):
        return listed([listed([bulk(b"name"), bulk(b"x"), bulk(b"state"), bulk(migration["state"])])])
    if name in (b"READONLY", b"CLUSTER"):
        return b"+OK\r\n"
    return b"-ERR unknown command\r\n"


async def serve(reader, writer):
    try:
        while words := await read_command(reader):
            writer.write(await answer(words))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        pass
    writer.close()


async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", PORT, limit=1 << 26) as server:
        await server.serve_forever()


asyncio.run(main())
