# Knocks at every target, one after the other and far less than a millisecond apart, until standard input ends. Each target is an
# address, a port and whether the kernel would answer a connection itself; prints the rounds and whom it got an answer of.
import select, socket, sys, time

targets = [word.rsplit('/', 2) for word in sys.argv[1:]]
rounds, open_sockets, answered = 0, [], set()
while not select.select([sys.stdin], [], [], 0)[0]:
    for host, port, kind in targets:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        tcp = kind != 'udp'
        s = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        s.setblocking(False)
        try:
            if tcp:
                s.connect_ex((host, int(port)))
            else:
                s.sendto(b'knock', (host, int(port)))
        except OSError:
            pass
        open_sockets.append((s, host + ' ' + port + ' ' + kind))
    # By then a round trip on one node is long over.
    while len(open_sockets) > 40 * len(targets):
        s, name = open_sockets.pop(0)
        try:
            s.getpeername()
            s.send(b'GET / HTTP/1.0\r\n\r\n')
            if name.endswith('direct'):
                answered.add(name)
        except OSError:
            pass
        s.close()
    rounds += 1
    if rounds == 1:
        print('knocking', flush=True)
    time.sleep(0.0005)
print(rounds, sorted(answered))
