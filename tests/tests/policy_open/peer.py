# `serve PORT` greets and then answers every byte. `talk HOST PORT` prints the greeting, then does what it reads: `ask` sends a byte
# and prints what came back, `wait` prints how the connection ends. `stream HOST PORT` sends datagrams without a pause, and answers
# `ask` with whether one that it sends from then on comes back.
import os, socket, sys, threading, time

# An emulated machine handles fewer datagrams than these streams would send; its queues alone are seconds long then.
PAUSE, PATIENCE = (0.1, 12) if 'SLUICE_EMULATED' in os.environ else (0.01, 2)

def answer(s):
    try:
        s.sendall(b'h')
        while (data := s.recv(1)):
            s.sendall(data)
    except OSError:
        pass

def echo(port):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(('', port))
    while True:
        s.sendto(*s.recvfrom(100))

def comes_back(s, last):
    first, deadline = last[0] + 1, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if int(s.recv(100)) >= first:
                return 'x'
        except OSError:
            pass
    return 'silence'

def stream(to):
    s = socket.socket(socket.AF_INET6 if ':' in to[0] else socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(to)
    s.settimeout(0.5)
    last = [0]
    def send():
        while True:
            try:
                s.send(str(last[0] + 1).encode())
            except OSError:
                pass
            last[0] += 1
            time.sleep(PAUSE)
    threading.Thread(target=send, daemon=True).start()
    print('h' if comes_back(s, last) == 'x' else 'silence', flush=True)
    for line in sys.stdin:
        print(comes_back(s, last), flush=True)

if sys.argv[1] == 'stream':
    stream((sys.argv[2], int(sys.argv[3])))
    sys.exit()
if sys.argv[1] == 'serve':
    threading.Thread(target=echo, args=(int(sys.argv[2]),), daemon=True).start()
    listener = socket.create_server(('', int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

s = socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=20)
print(s.recv(1).decode(), flush=True)
for line in sys.stdin:
    try:
        if line == 'ask\n':
            s.sendall(b'x')
        print(s.recv(1).decode() or 'closed', flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
