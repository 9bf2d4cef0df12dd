# `serve PORT` greets and then answers every byte. `talk HOST PORT` prints the greeting, then does what it reads: `ask` sends a byte
# and prints what came back, `wait` prints how the connection ends.
import socket, sys, threading

def answer(s):
    try:
        s.sendall(b'h')
        while (data := s.recv(1)):
            s.sendall(data)
    except OSError:
        pass

if sys.argv[1] == 'serve':
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
