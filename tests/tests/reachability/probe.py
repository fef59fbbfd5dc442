"""One packet's worth of asking, as whoever runs it, in whichever network. Standard library alone.

    python3 -c THIS COMMAND WORDS...

Prints `yes` or `no`; `serve` prints `ready` and goes on until it is killed.
"""
import os, select, socket, struct, sys, threading, time

COMMAND, *WORDS = sys.argv[1:]
SILENCE = 1.5
TOKEN = b"<%d-%d>" % (os.getpid(), time.monotonic_ns())


def tcp(address, port):
    with socket.create_connection((address, int(port)), SILENCE) as s:
        s.sendall(TOKEN)
        seen = b""
        while TOKEN not in seen:
            more = s.recv(4096)
            if not more:
                return False
            seen += more
        return True


def asked(address, port):
    """A socket that has had an answer, or none."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.connect((address, int(port)))
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        s.send(TOKEN)
        again = time.monotonic() + SILENCE / 4
        while (left := again - time.monotonic()) > 0:
            if select.select([s], [], [], left)[0] and s.recv(4096) == TOKEN:
                return s
    return None


def udp(address, port):
    return asked(address, port) is not None


def echo(address):
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
        # The kernel puts the checksum in.
        s.sendto(struct.pack("!BBHHH", 128, 0, 0, os.getpid() & 0xffff, 1) + TOKEN, (address, 0))
        deadline = time.monotonic() + SILENCE
        while (left := deadline - time.monotonic()) > 0:
            if select.select([s], [], [], left)[0]:
                data, (peer, *_) = s.recvfrom(4096)
                if data[:1] == b"\x81" and data.endswith(TOKEN):
                    return True
        return False


def too_big(address, port, mtu):
    """Has datagrams answered, and says of an answer that it was too big."""
    flow = asked(address, port)
    if flow is None:
        return False
    own = flow.getsockname()
    me, it = (socket.inet_pton(socket.AF_INET6, a) for a in (own[0], address))
    # The answer as it was on its way: IPv6, UDP, its first bytes.
    size = 8 + 1000
    quoted = struct.pack("!IHBB", 6 << 28, size, 17, 60) + it + me
    quoted += struct.pack("!HHHH", int(port), own[1], size, 0xbeef) + bytes(1000)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
        s.bind((own[0], 0))
        s.sendto(struct.pack("!BBHI", 2, 0, 0, int(mtu)) + quoted, (address, 0))
    return True


def serve(port):
    any_ = ("::", int(port))
    listener = socket.create_server(any_, family=socket.AF_INET6)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.bind(any_)

    def connections():
        while True:
            s, _ = listener.accept()
            s.sendall(s.recv(4096))

    threading.Thread(target=connections, daemon=True).start()
    print("ready", flush=True)
    while True:
        data, peer = datagrams.recvfrom(4096)
        datagrams.sendto(data, peer)


try:
    answer = globals()[COMMAND.replace("-", "_")](*WORDS)
except (TimeoutError, ConnectionError, PermissionError):
    # The last is how Linux tells a process that its own host drops its datagram.
    answer = False
print("yes" if answer else "no")
