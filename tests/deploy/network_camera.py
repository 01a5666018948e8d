"""A network camera in a process of its own, so that it can be killed: `python network_camera.py rtsp|damaged|udp PORT`.

rtsp:    h264 over RTSP with interleaved RTP (RFC 2326, section 10.12; RFC 6184), packed by libavformat's own RTP muxer.
damaged: the same; every fifth packet has wrong bytes.
udp:     an MPEG transport stream to that port, whether anybody listens or not.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import av

from dtkd_edge.deploy.sources.pattern import draw

FPS, SIZE = 25, (160, 120)
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\nc=IN IP4 0.0.0.0\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
)


def film(url: str, kind: str) -> None:
    """The test pattern, in real time and for ever."""
    with av.open(url, "w", format=kind) as file:
        stream: Any = file.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "preset": "ultrafast", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        begin = time.monotonic()
        for number in range(1_000_000):
            time.sleep(max(begin + number / FPS - time.monotonic(), 0))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(draw(number / FPS, *SIZE), format="rgb24")))


class Server:
    def __init__(self, port: int, *, damaged: bool) -> None:
        self.damaged = damaged
        self.playing: list[socket.socket] = []
        self.packets, self.control = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        self.packets.bind(("127.0.0.1", 0))
        self.control.bind(("127.0.0.1", 0))
        self.listener = socket.create_server(("127.0.0.1", port))

    def run(self) -> None:
        rtp, rtcp = (udp.getsockname()[1] for udp in (self.packets, self.control))
        threading.Thread(target=film, args=(f"rtp://127.0.0.1:{rtp}?rtcpport={rtcp}", "rtp"), daemon=True).start()
        threading.Thread(target=self._send, daemon=True).start()
        print(self.listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=self._answer, args=(self.listener.accept()[0],), daemon=True).start()

    def _send(self) -> None:
        number = 0
        while True:
            packet = self.packets.recv(65536)
            number += 1
            if self.damaged and number % 5 == 0:
                packet = packet[:20] + bytes(byte ^ 0x5A for byte in packet[20:])
            for client in list(self.playing):
                try:
                    client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                except OSError:
                    self.playing.remove(client)

    def _answer(self, client: socket.socket) -> None:
        with suppress(OSError), client, client.makefile("rb") as asked:
            while first := asked.read(1):
                if first == b"$":  # the client's own RTCP
                    asked.read(int.from_bytes(asked.read(3)[1:], "big"))
                    continue
                method = (first + asked.readline()).split()[0].decode()
                headers = {}
                while (line := asked.readline().decode().strip()) != "":
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                lines = [f"CSeq: {headers.get('cseq', '0')}", "Session: 1;timeout=60"]
                body = ""
                if method == "OPTIONS":
                    lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
                elif method == "DESCRIBE":
                    body = SDP
                    lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
                elif method == "SETUP":
                    lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
                client.sendall(("\r\n".join(["RTSP/1.0 200 OK", *lines, "", ""]) + body).encode())
                if method == "PLAY":
                    self.playing.append(client)
                elif method == "TEARDOWN":
                    return


if __name__ == "__main__":
    if sys.argv[1] == "udp":
        film(f"udp://127.0.0.1:{sys.argv[2]}?pkt_size=1316", "mpegts")
    Server(int(sys.argv[2]), damaged=sys.argv[1] == "damaged").run()
