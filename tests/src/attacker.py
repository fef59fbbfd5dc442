"""What a hostile tenant does to v6podd, as himself. Run by attacker.rs; standard library alone.

    python3 -c THIS SOCKET COMMAND WORDS...

Every command prints `ready` once its harm is done or under way, and then goes on until it is killed.
"""
import array, ctypes, errno, json, os, random, resource, select, signal, socket, struct, sys, tempfile, threading, time

SOCKET, COMMAND, *WORDS = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(SOCKET)
    s.settimeout(20)
    return s


def send(s, data, descriptors=(), flags=0):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    s.sendmsg([data], rights if descriptors else [], flags)


def request(body, path="/api/activate"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def container():
    return "%064x" % random.getrandbits(256)


def answer(s):
    """The status code; 0 if there is no answer."""
    try:
        return int(s.recv(65536).split(b" ")[1])
    except (OSError, IndexError, ValueError):
        return 0


def become_root_of_a_user_namespace(flags=0):
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | flags):
        raise OSError(ctypes.get_errno(), "unshare")
    for file, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
        with open(f"/proc/self/{file}", "w") as f:
            f.write(text)


def network():
    """A descriptor of a new network namespace, which lives as long as the descriptor."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def lingering():
    """A socket whose last close waits an hour, and what has to be kept for that."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = socket.socket()
    client.connect(listener.getsockname())
    other, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    client.setblocking(False)
    try:
        while True:
            client.send(b"x" * 65536)
    except BlockingIOError:
        return client, other


def is_ending(pid):
    """Whether the process is gone or on its way out: what it waits for then, it waits for unseen."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return int(f.read().rpartition(")")[2].split()[6]) & 4 != 0  # PF_EXITING
    except OSError:
        return True


class Fuse:
    """A file system in a mount namespace of ours, with one file of any name. It answers everything
    but FLUSH, which is what close(2) asks. Its server is a process of its own: one that has files
    of its own file system open can never be ended again, not even by SIGKILL."""

    def __init__(self):
        device = os.open("/dev/fuse", os.O_RDWR)
        self.folder = tempfile.mkdtemp()
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"v6t", self.folder.encode(), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        holder = os.getpid()
        if os.fork() == 0:
            self.serve(device, holder)
            os._exit(0)
        os.close(device)

    def serve(self, device, holder):
        attributes = struct.pack("<6Q10I", 2, 0, 0, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 4096, 0)
        replies = {
            26: struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 9, 9, 4096, 1, 1, 0, 0, *[0] * 7),  # INIT
            1: struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes,  # LOOKUP
            3: struct.pack("<Q2I", 3600, 0, 0) + attributes,  # GETATTR
            14: struct.pack("<Q2I", 1, 0, 0),  # OPEN
        }
        while not is_ending(holder):
            if not select.select([device], [], [], 0.2)[0]:
                continue
            try:
                question = os.read(device, 1 << 17)
            except OSError:
                return
            _, opcode, unique = struct.unpack_from("<IIQ", question)
            if opcode == 25:  # FLUSH
                continue
            body = replies.get(opcode, b"")
            error = 0 if opcode in replies else -errno.ENOSYS
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def file(self):
        return os.open(f"{self.folder}/file", os.O_RDONLY)


def send_away(descriptors, data, flags=0):
    """Sends descriptors whose only holder is the receiver from then on. To close one's own FUSE file
    would hang: those are sent while they are open, which is as good."""
    s = connect()
    try:
        send(s, data, descriptors, flags)
        if flags & socket.MSG_OOB:
            # Whoever reads on throws the urgent byte away.
            s.send(b"!")
    except OSError:
        pass
    return s


def idle(count):
    kept = []
    for _ in range(int(count)):
        try:
            kept.append(connect())
        except OSError:
            break
    return kept


def naive():
    """A socket of nobody's but ours, at which everybody is accepted and nobody is heard."""
    name = "\0v6t-naive-%d" % os.getpid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(64)
    if os.fork() == 0:
        libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        while True:
            listener.accept()[0].close()
    return name


def waiting(words):
    """So many threads that all connect, to the socket, to another one or to a naive one of ours, and most of whom
    wait."""
    count, *path = words.split(" ")
    path = path[0] if path else SOCKET
    path = naive() if path == "naive" else path
    threading.stack_size(64 << 10)
    each = 250

    def again():
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
            except OSError:
                time.sleep(0.01)
            s.close()

    for _ in range(int(count) // each):
        if os.fork() == 0:
            libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
            for _ in range(each - 1):
                threading.Thread(target=again, daemon=True).start()
            again()
    time.sleep(2)
    with open("/proc/net/unix") as f:
        print("waiting", sum(1 for line in f if line.split()[7:] == [path]), flush=True)


def half(count):
    kept = idle(count)
    for s in kept:
        try:
            s.sendall(b"POST /api/activate HTTP/1.1\r\nHost: localhost\r\nContent-Le")
        except OSError:
            pass
    return kept


def linger(count):
    """Beside a request that is refused before its descriptor is looked at, beside one that is looked
    at, without any request, several in one message, and with an urgent byte (one that comes alone
    bears descriptors of its own)."""
    kept = []
    bodies = [
        request({"id": container(), "user": os.getuid()}),
        request({"id": container()}),
        b"P",
        request(b"{}", "/api/nothing"),
    ]
    for n in range(int(count)):
        sockets = [lingering() for _ in range(1 + n % 3)]
        fds = [s.fileno() for s, _ in sockets]
        if n % 5 == 4:
            kept.append(send_away(fds, b"P", socket.MSG_OOB))
        else:
            kept.append(send_away(fds, bodies[n % len(bodies)]))
        close_for_good(s for s, _ in sockets)
        kept.extend(other for _, other in sockets)
    return kept


def close_for_good(sockets):
    """Closes sockets that linger, whoever has the last descriptor of them. Where that is us, the
    alarm ends the wait."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    for s in sockets:
        s.close()
    signal.setitimer(signal.ITIMER_REAL, 0)


def fuse(count):
    become_root_of_a_user_namespace(CLONE_NEWNS)
    files = Fuse()
    fds = [files.file() for _ in range(8)]
    if COMMAND == "fuse" and closing_hangs(fds[0]):
        print("close hangs", flush=True)
    body = request({"id": container()})
    return [files] + [send_away(fds[: 1 + n % 8], (body, b"P")[n % 2]) for n in range(int(count))]


def unread(count):
    """Connections that bear a descriptor, to a daemon that no longer listens to us: what we sent before
    cannot be closed. Each is ours no more once it is sent."""
    files = fuse(900)
    descriptor = os.open("/", os.O_RDONLY)
    for _ in range(int(count)):
        send_away([descriptor], b"P").close()
    return files


def closing_hangs(fd):
    """Whether whoever closes it waits for as long as we like."""
    child = os.fork()
    if child == 0:
        try:
            os.close(fd)
        finally:
            os._exit(0)
    time.sleep(1)
    return os.waitpid(child, os.WNOHANG)[0] == 0


def mount_over(folder):
    """A file system that never answers, where root sees it: by fusermount, as any user may."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
    program = ["fusermount3", "-o", "rw,nonempty", "--", folder]
    if os.spawnvpe(os.P_WAIT, program[0], program, environment):
        raise OSError("fusermount3")
    _, rights, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    return rights


def leases(count):
    """That many attachments, each held by a connection."""
    become_root_of_a_user_namespace()
    kept = []
    for _ in range(int(count)):
        ns, s = network(), connect()
        send(s, request({"id": container(), "lease": True}), [ns])
        if answer(s) != 200:
            break
        kept.append((ns, s))
    print("held", len(kept), flush=True)
    return kept


def storm(words):
    """Activations and releases of namespaces, in every order, until killed."""
    become_root_of_a_user_namespace()
    spaces = [network() for _ in range(int(words))]
    held = {}
    print("ready", flush=True)
    while True:
        n = random.randrange(len(spaces))
        try:
            if n in held and random.random() < 0.6:
                held.pop(n).close()
                continue
            s = connect()
            send(s, request({"id": "%064x" % n, "lease": random.random() < 0.8}), [spaces[n]])
            if random.random() < 0.8:
                answer(s)
            if random.random() < 0.8:
                held[n] = s
            elif random.random() < 0.3:
                # The namespace dies under it.
                os.close(spaces[n])
                spaces[n] = network()
        except OSError:
            time.sleep(0.01)  # The daemon is away.


def flood(names):
    """All at once, or those that are named, each in a process of its own, until killed. In a session of their own, as a login
    has one. What makes the daemon refuse all that the tenant sends is done now and then, or the
    rest would not get through."""
    os.setsid()

    def again(work):
        while True:
            try:
                work()
            except OSError:
                time.sleep(0.001)

    def one_namespace():
        become_root_of_a_user_namespace()
        ns = network()
        again(lambda: answer(send_away([ns], request({"id": container(), "lease": True}))))

    def and_gone():
        become_root_of_a_user_namespace()
        ns = network()
        again(lambda: send_away([ns], request({"id": container()})).close())

    def dead_ones():
        become_root_of_a_user_namespace()

        def one():
            ns = network()
            s = send_away([ns], request({"id": container()}))
            os.close(ns)
            answer(s)

        again(one)

    def quiet():
        def many():
            kept = idle(40) + half(40)
            time.sleep(0.5)
            del kept

        again(many)

    def crowd():
        def many():
            end = time.monotonic() + 1
            while time.monotonic() < end:
                kept = idle(200) + half(200)
            del kept
            time.sleep(2)

        again(many)

    def descriptors():
        ends = socket.socketpair()
        fds = [ends[0].fileno()] * 253

        def many():
            for _ in range(200):
                send_away(fds, b"POST").close()
            time.sleep(2)

        again(many)

    def large():
        again(lambda: send_away([], request(b"x" * (1 << 20))).close())

    def late(how, count):
        # From then on nothing else of ours is heard: who has so much unclosed is not listened to.
        time.sleep(4)
        kept = how(count)
        while kept:
            time.sleep(60)

    def files():
        late(fuse, 600)

    def sockets():
        late(linger, 400)

    works = [one_namespace, one_namespace, and_gone, dead_ones, quiet, crowd, descriptors, large]
    works += [files, sockets]
    if names:
        works = [work for work in works if work.__name__ in names.split(",")]
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
            work()
            os._exit(0)
        children.append(child)
    time.sleep(1)


COMMANDS = (idle, half, linger, fuse, unread, mount_over, leases, storm, waiting, flood)
COMMANDS = {f.__name__: f for f in COMMANDS}
everything = COMMANDS[COMMAND](*(WORDS or [None]))
print("ready", flush=True)
while True:
    time.sleep(60)
