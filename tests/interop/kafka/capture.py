"""What the clients of a run send, as fixtures: `run.py --capture tests/fuzz/corpus/kafka_requests`.

Reads the loopback interface, as root. Of each kind of request, version and client one is kept, the
longest that is no longer than a fixture should be; a file that is there already stays as it is.
"""

import pathlib
import socket
import struct
import threading

# A fixture is looked at, and mutated: what is longer says nothing more.
LONGEST = 1500
ETHERNET, OUTGOING, TCP, SYN = 14, 4, 6, 2
ALL_PROTOCOLS = socket.htons(3)
SO_RCVBUFFORCE = 33
BUFFER = 256 << 20
NOT_WHOLE = object()
# Who say who they are: a check may use them for what its own client cannot do.
NAMED, HEADER = ["kafka-python", "aiokafka"], 40


class Capture:
    """Listens until it is stopped; `client` is whose requests come on connections made now."""

    def __init__(self, ports):
        self.client = None
        self._ports = set(ports)
        self._streams = {}
        self._best = {}
        self._stopped = False
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ALL_PROTOCOLS)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.5)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def listen_to(self, ports):
        """Ports of nodes that came later."""
        self._ports.update(ports)

    def _listen(self):
        while not self._stopped:
            try:
                packet, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            # Each is seen twice: as it goes out and as it comes in.
            if kind != OUTGOING:
                self._packet(packet[ETHERNET:])

    def _packet(self, ip):
        if len(ip) < 40 or ip[0] >> 4 != 4 or ip[9] != TCP:
            return
        total = struct.unpack(">H", ip[2:4])[0] or len(ip)
        tcp = ip[(ip[0] & 15) * 4 : total]
        source, port, sequence = struct.unpack(">HHI", tcp[:8])
        if port not in self._ports:
            return
        if tcp[13] & SYN:
            self._streams[source, port] = Stream(self.client, sequence + 1)
        elif stream := self._streams.get((source, port)):
            for request in stream.take(sequence, tcp[(tcp[12] >> 4) * 4 :]):
                self._keep(stream.client, request)

    def _keep(self, client, request):
        key, version = struct.unpack(">hh", request[:4])
        client = next((one for one in NAMED if one.encode() in request[:HEADER]), client)
        best = self._best.get((key, version, client), b"")
        if client and len(best) < len(request) <= LONGEST:
            self._best[key, version, client] = request

    def stop(self, folder):
        """Writes what is new; the names of it."""
        self._stopped = True
        self._thread.join()
        made = []
        for (key, version, client), request in sorted(self._best.items()):
            path = pathlib.Path(folder) / f"{key:02}-{version:02}-{client}.bin"
            if not path.exists():
                path.write_bytes(request)
                made.append(path.name)
        return made


class Stream:
    """One direction of a connection, put in order."""

    def __init__(self, client, first):
        self.client = client
        self._next = first % 2**32
        self._early = {}
        self._bytes = bytearray()

    def take(self, sequence, data):
        """The requests that are whole now."""
        if data:
            self._early[sequence] = data
        while (data := self._early.pop(self._next, None)) is not None:
            self._bytes += data
            self._next = (self._next + len(data)) % 2**32
        while (request := self._request()) is not NOT_WHOLE:
            yield request

    def _request(self):
        if len(self._bytes) < 4:
            return NOT_WHOLE
        end = 4 + struct.unpack(">I", self._bytes[:4])[0]
        if len(self._bytes) < end:
            return NOT_WHOLE
        request = bytes(self._bytes[4:end])
        del self._bytes[:end]
        return request
