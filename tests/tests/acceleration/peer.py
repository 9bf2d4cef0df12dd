"""Both ends of the acceleration tests: `peer.py serve PORT`, or `peer.py WHAT HOST PORT [ARGUMENT]`.

A connection begins with a line that says what is done on it. The client prints what it found; any surprise is an exception.
"""

import array, errno, fcntl, hashlib, os, queue, random, select, socket, sys, termios, threading, time

BLOCK = random.Random(7).randbytes(1 << 20)
# Emulated guests of `xtask vm` take longer.
SLOWER = 6 if "SLUICE_EMULATED" in os.environ else 1
PATIENCE = 20 * SLOWER


def pattern(size):
    for start in range(0, size, len(BLOCK)):
        yield BLOCK[: min(len(BLOCK), size - start)]


def digest(size):
    sum = hashlib.sha256()
    for piece in pattern(size):
        sum.update(piece)
    return sum.hexdigest()


def send_pattern(s, size):
    for piece in pattern(size):
        s.sendall(piece)


def receive(s, size, chunk=1 << 16, sum=None):
    sum = sum or hashlib.sha256()
    while size:
        piece = s.recv(min(chunk, size))
        assert piece, f"the stream ended {size} bytes early"
        sum.update(piece)
        size -= len(piece)
    return sum.hexdigest()


def exactly(s, size):
    text = b""
    while len(text) < size:
        piece = s.recv(size - len(text))
        assert piece, f"the stream ended after {text!r}"
        text += piece
    return text


def unread(s):
    count = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, count)
    return count[0]


def wait_unread(s, count):
    deadline = time.monotonic() + PATIENCE
    while unread(s) != count:
        left = deadline - time.monotonic()
        assert left > 0, f"FIONREAD says {unread(s)}, not {count}"
        select.select([s], [], [], left)
    return count


# What is done on a connection: (client, server), each given the socket and the number that the client was started with.


def swap_client(s, size):
    sender = threading.Thread(target=send_pattern, args=(s, size))
    sender.start()
    seen = receive(s, size)
    sender.join()
    there = exactly(s, 64).decode()
    assert seen == there == digest(size), (seen, there, digest(size))
    return f"{size} bytes each way"


def swap_server(s, size):
    sender = threading.Thread(target=send_pattern, args=(s, size))
    sender.start()
    seen = receive(s, size)
    sender.join()
    s.sendall(seen.encode())


def behind_server(s, size):
    """Falls so far behind that it may be led back to TCP, as only programs that poll may."""
    by_poll(s)
    swap_server(s, size)


def pause_client(s, size):
    """Reads half, waits for a line of standard input, reads the rest; sends half before, half after."""
    first = size // 2
    sum = hashlib.sha256()
    left = first
    while left:
        piece = s.recv(min(1 << 16, left))
        assert piece, "ended early"
        sum.update(piece)
        left -= len(piece)
    print("half", flush=True)
    sys.stdin.readline()
    while left < size - first:
        piece = s.recv(min(1 << 16, size - first - left))
        assert piece, f"ended {size - first - left} bytes early"
        sum.update(piece)
        left += len(piece)
    assert sum.hexdigest() == digest(size), "the bytes differ"
    send_pattern(s, size)
    there = exactly(s, 64).decode()
    assert there == digest(size), "the bytes differ on the way back"
    return f"{size} bytes each way"


def pause_server(s, size):
    send_pattern(s, size)
    s.sendall(receive(s, size).encode())


def fionread_client(s, _):
    wait_unread(s, 1000)
    exactly(s, 400)
    found = [1000, unread(s)]
    exactly(s, 600)
    return str(found + [unread(s)])


def fionread_server(s, _):
    s.sendall(BLOCK[:1000])
    s.recv(1)


def peek_client(s, _):
    select.select([s], [], [], PATIENCE)
    peeked = s.recv(600, socket.MSG_PEEK)
    again = s.recv(600, socket.MSG_PEEK)
    read = exactly(s, 1000)
    return str([len(peeked), len(again), peeked == again == read[:600] == BLOCK[:600], read == BLOCK[:1000]])


def half_client(s, size):
    send_pattern(s, size)
    s.shutdown(socket.SHUT_WR)
    there = exactly(s, 64).decode()
    seen = receive(s, size)
    assert s.recv(1) == b"", "bytes after the end"
    return str(there == seen == digest(size))


def half_server(s, size):
    seen = receive(s, size)
    assert s.recv(1) == b"", "bytes after the end"
    s.sendall(seen.encode())
    send_pattern(s, size)


def early_client(s, size):
    """Closed by the other end with bytes unread."""
    s.sendall(b"x" * size)
    ended = b""
    try:
        ended = s.recv(10)
    except ConnectionResetError:
        pass
    assert ended == b"", ended
    for _ in range(1000):
        try:
            s.sendall(b"y")
        except (BrokenPipeError, ConnectionResetError):
            return "told"
    return "never told"


def early_server(s, size):
    select.select([s], [], [], PATIENCE)


def silent_client(s, _):
    """The server speaks first."""
    return exactly(s, 5).decode()


def silent_server(s, _):
    s.sendall(b"hello")


def splice_client(s, size):
    """Reads as proxies do that move bytes without looking at them."""
    s.setblocking(True)
    out, into = os.pipe()
    text = b""
    while len(text) < size:
        text += os.read(out, os.splice(s.fileno(), into, size - len(text)))
    assert text == BLOCK[:size], "the bytes differ"
    return f"{size} spliced"


def splice_server(s, size):
    s.sendall(BLOCK[:size])
    s.recv(1)


GO = threading.Event()
BACK = 16 << 20


def flood_client(s, size):
    """Sends until nothing goes any more for a second, tells how much that was, and sends the rest when the other end reads.

    Pieces are small, so that a busy machine has time to notice.
    """
    s.setblocking(False)
    sent = 0
    while sent < size and select.select([], [s], [], 1)[1]:
        start = sent % len(BLOCK)
        sent += s.send(BLOCK[start : min(len(BLOCK), start + 8192, start + size - sent)])
    print(f"stopped at {sent}", flush=True)
    s.settimeout(3 * PATIENCE)
    while sent < size:
        start = sent % len(BLOCK)
        end = min(len(BLOCK), start + size - sent)
        s.sendall(BLOCK[start:end])
        sent += end - start
    assert receive(s, BACK) == digest(BACK), "the bytes that waited here differ"
    assert exactly(s, 64).decode() == digest(size), "the bytes differ"
    return f"{size} bytes"


def flood_server(s, size):
    """Reads some, so that it is known to read, and the rest when it is told to. What it sends waits for as long."""
    send_pattern(s, BACK)
    sum = hashlib.sha256()
    receive(s, len(BLOCK), sum=sum)
    assert GO.wait(3 * PATIENCE), "nobody said go"
    s.sendall(receive(s, size - len(BLOCK), sum=sum).encode())


def sip_server(s, size):
    """Reads one of its messages after another, slowly, so that it is not known to read, and the rest when it is told to."""
    send_pattern(s, BACK)
    sum, left = hashlib.sha256(), size
    while not GO.wait(0.3):
        receive(s, 8192, sum=sum)
        left -= 8192
    s.sendall(receive(s, left, sum=sum).encode())


DROWNED = queue.Queue()


def drown_client(s, size):
    """Sends to one who does not look for what is handed over."""
    sent = 0
    try:
        while sent < size:
            start = sent % len(BLOCK)
            sent += s.send(BLOCK[start : start + 8192])
        s.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        return "told"
    return "never told"


def drown_server(s, size):
    """Reads as proxies do that move bytes without looking at them; what came through, and how it ended, is kept."""
    out, into = os.pipe()
    moved = 0
    try:
        while piece := os.splice(s.fileno(), into, 1 << 16):
            moved += len(os.read(out, piece))
        DROWNED.put(f"{moved} and an end")
    except OSError as error:
        DROWNED.put(f"{moved} and {errno.errorcode[error.errno]}")


def drowned_client(s, _):
    text = b""
    while piece := s.recv(100):
        text += piece
    return text.decode()


def drowned_server(s, _):
    s.sendall(DROWNED.get(timeout=PATIENCE).encode())


# Through the agent, and past it once it has caught up.


def by_poll(s, seconds=PATIENCE):
    """Who waits in `recv` itself is woken by an acknowledgement of its end and by a reset, and then told EAGAIN by the kernel."""
    s.settimeout(seconds)


def send_pieces(s, size, seed):
    """Sends the pattern in pieces of all sizes, with pauses."""
    sizes, sent = random.Random(seed), 0
    while sent < size:
        start = sent % len(BLOCK)
        most = sizes.choice((1, sizes.randrange(1, 3000), sizes.randrange(1, len(BLOCK))))
        piece = BLOCK[start : min(len(BLOCK), start + most, start + size - sent)]
        s.sendall(piece)
        sent += len(piece)
        if sizes.random() < 0.2:
            time.sleep(sizes.random() / 500)


def ping(s, count=50):
    for _ in range(count):
        s.sendall(b"p")
        assert exactly(s, 1) == b"q"


def pong(s, count=50):
    for _ in range(count):
        assert exactly(s, 1) == b"p"
        s.sendall(b"q")


def chat_client(s, size):
    """Bytes both ways at once, at the beginning one by one."""
    ping(s)
    sender = threading.Thread(target=send_pieces, args=(s, size, size + 1))
    sender.start()
    seen = receive(s, size)
    sender.join()
    there = exactly(s, 64).decode()
    assert seen == there == digest(size), (seen, there, digest(size))
    return f"{size} bytes each way"


def chat_server(s, size):
    pong(s)
    sender = threading.Thread(target=send_pieces, args=(s, size, size + 2))
    sender.start()
    seen = receive(s, size)
    sender.join()
    s.sendall(seen.encode())


def first_client(s, size):
    """The server speaks first, and much."""
    assert receive(s, size) == digest(size)
    return chat_client(s, size)


def first_server(s, size):
    send_pieces(s, size, size)
    chat_server(s, size)


def chats_client(s, size):
    """As many connections as there are threads, the first one's end is the last."""
    found, threads = queue.Queue(), []

    def one():
        with socket.socket(s.family) as other:
            other.settimeout(3 * PATIENCE)
            other.connect(s.getpeername())
            other.sendall(f"chat {size}\n".encode())
            found.put(chat_client(other, size))

    for _ in range(64):
        threads.append(threading.Thread(target=one))
        threads[-1].start()
    for thread in threads:
        thread.join()
    said = {found.get_nowait() for _ in threads}
    assert said == {f"{size} bytes each way"}, said
    return chat_client(s, size)


def close_client(s, size):
    """One end is done, then the other."""
    ping(s)
    return half_client(s, size)


def close_server(s, size):
    pong(s)
    half_server(s, size)


def back_client(s, size):
    """The server is done first."""
    ping(s)
    seen = receive(s, size)
    assert s.recv(1) == b"", "bytes after the end"
    send_pieces(s, size, 3)
    s.shutdown(socket.SHUT_WR)
    return str(seen == digest(size))


def back_server(s, size):
    by_poll(s)
    pong(s)
    send_pieces(s, size, 4)
    s.shutdown(socket.SHUT_WR)
    seen = receive(s, size)
    assert s.recv(1) == b"", "bytes after the end"
    KEPT.put(str(seen == digest(size)))


KEPT = queue.Queue()


def kept_client(s, _):
    """What the server has found out on another connection."""
    text = b""
    while piece := s.recv(100):
        text += piece
    return text.decode()


def kept_server(s, _):
    s.sendall(KEPT.get(timeout=PATIENCE).encode())


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    s.close()


def ended(s):
    try:
        return f"{len(s.recv(1))} bytes"
    except OSError as error:
        return errno.errorcode[error.errno]


def cut_client(s, _):
    ping(s)
    reset(s)
    return "reset"


def cut_server(s, _):
    by_poll(s)
    pong(s)
    KEPT.put(ended(s))


def slain_client(s, _):
    ping(s)
    return ended(s)


def slain_server(s, _):
    pong(s)
    reset(s)


def torn(s, seed, told=None):
    """Sends the pattern until it can't, and says what came of what it received: the beginning of the pattern, and how it ended."""
    over = threading.Event()

    def send():
        pieces, sent = random.Random(seed), 0
        try:
            while not over.is_set():
                start = sent % len(BLOCK)
                sent += s.send(BLOCK[start : start + pieces.randrange(1, 3000)])
                time.sleep(0.0002)
        except OSError:
            pass

    sender = threading.Thread(target=send)
    sender.start()
    received, how = 0, "an end"
    try:
        while piece := s.recv(1 << 16):
            start = received % len(BLOCK)
            pattern = (BLOCK + BLOCK)[start : start + len(piece)]
            assert piece == pattern, f"other bytes after {received}"
            if told and received < 1 << 20 <= received + len(piece):
                told()
            received += len(piece)
    except TimeoutError:
        how = "silence"
    except OSError as error:
        how = errno.errorcode[error.errno]
    over.set()
    s.close()
    sender.join()
    return f"{how} in order" if received >= 1 << 20 else f"only {received} bytes, {how}"


def torn_client(s, _):
    """Until the agent between dies."""
    ping(s)
    return torn(s, 5, told=lambda: print("going", flush=True))


def torn_server(s, _):
    by_poll(s)
    pong(s)
    try:
        KEPT.put(torn(s, 6))
    except AssertionError as error:
        KEPT.put(str(error))


def floods_client(s, size):
    ping(s)
    return flood_client(s, size)


def floods_server(s, size):
    by_poll(s, 60)
    pong(s)
    flood_server(s, size)


def drowns_client(s, size):
    ping(s)
    return drown_client(s, size)


def drowns_server(s, size):
    pong(s)
    s.settimeout(None)
    drown_server(s, size)


def rounds_client(s, count):
    """Round trips, when it is told to."""
    ping(s)
    print("ready", flush=True)
    sys.stdin.readline()
    ping(s, count)
    print("done", flush=True)
    sys.stdin.readline()
    return "over"


def rounds_server(s, count):
    pong(s)
    pong(s, count)
    s.recv(1)


def go_client(s, _):
    return exactly(s, 2).decode()


def go_server(s, _):
    GO.set()
    s.sendall(b"ok")


# What a server says that speaks first.
GREETING = b"220 ready\n"

CASES = {
    "chat": (chat_client, chat_server),
    "first": (first_client, first_server),
    "chats": (chats_client, chat_server),
    "close": (close_client, close_server),
    "back": (back_client, back_server),
    "kept": (kept_client, kept_server),
    "cut": (cut_client, cut_server),
    "slain": (slain_client, slain_server),
    "torn": (torn_client, torn_server),
    "floods": (floods_client, floods_server),
    "drowns": (drowns_client, drowns_server),
    "rounds": (rounds_client, rounds_server),
    "splice": (splice_client, splice_server),
    "flood": (flood_client, flood_server),
    "sip": (flood_client, sip_server),
    "go": (go_client, go_server),
    "drown": (drown_client, drown_server),
    "drowned": (drowned_client, drowned_server),
    "swap": (swap_client, swap_server),
    "behind": (swap_client, behind_server),
    "pause": (pause_client, pause_server),
    "fionread": (fionread_client, fionread_server),
    "peek": (peek_client, fionread_server),
    "half": (half_client, half_server),
    "early": (early_client, early_server),
    "silent": (silent_client, silent_server),
}


def serve_one(s, greeting):
    with s:
        if greeting:
            s.sendall(greeting)
        line = b""
        while not line.endswith(b"\n"):
            piece = s.recv(1)
            if not piece:
                return
            line += piece
        what, size = line.decode().split()
        CASES[what][1](s, int(size))


def serve(port, greeting):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    while True:
        s, _ = listener.accept()
        threading.Thread(target=serve_one, args=(s, greeting), daemon=True).start()


def main(what, *arguments):
    if what in ("serve", "greet"):
        serve(int(arguments[0]), GREETING if what == "greet" else b"")
    host, port, size = arguments[0], int(arguments[1]), int((*arguments[2:], "0")[0])
    held, greeted = what.startswith("held-"), what.startswith("greeted-")
    what = what.removeprefix("held-").removeprefix("greeted-")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.settimeout(PATIENCE)
        if held:
            # The handshake's last acknowledgement waits for data, so that the other end comes in after the first write.
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        s.connect((host, port))
        if greeted:
            assert exactly(s, len(GREETING)) == GREETING
        s.sendall(f"{what} {size}\n".encode())
        print(CASES[what][0](s, size), flush=True)


main(*sys.argv[1:])
