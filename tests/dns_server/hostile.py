"""Any bytes at all, and what must hold of what they are met with: for Hypothesis, the corpus and the fuzzer alike."""

from __future__ import annotations

from pathlib import Path

import dns.flags

import dns.message
from mesh.dns.cache import read_answer
from mesh.dns.message import Malformed
from mesh.dns.packets import Packets
from mesh.dns.wire import Forward, Reply, Transport, respond
from mesh.dns.zone import Zone
from tests.dns_server.zones import guestbook

CORPUS = Path(__file__).with_name("corpus.txt")
"""Inputs that the fuzzer found to take different ways through the code, one in hex per line."""

ZONE = Zone(guestbook())
_NOT_QUERY = 0x78  # bits of the opcode: dnspython reads other opcodes as other kinds of messages


def corpus() -> list[bytes]:
    return [bytes.fromhex(line) for line in CORPUS.read_text().split()]


def meet(data: bytes) -> None:
    """As a query by UDP and TCP, asked twice, and as another server's answer."""
    for transport, most in ((Transport.UDP, 1232), (Transport.TCP, 65535)):
        reply = respond(data, transport, ZONE)
        if not isinstance(reply, Reply):
            assert isinstance(reply, Forward) or len(data) < 12 or data[2] & 0x80, "silence is for answers only"
            continue
        assert reply.packet[:2] == data[:2], "clients know their answer by the ID"
        assert reply.packet[2] & 0x80
        assert len(reply.packet) <= most
        if not reply.packet[2] & _NOT_QUERY:
            dns.message.from_wire(reply.packet)
        packets = Packets()
        packets.keep(data, reply, [0])
        if kept := packets.answer(data):
            assert len(kept[0]) == len(reply.packet)
            assert kept[0][:12] == reply.packet[:12]
    try:
        read_answer(data)
    except Malformed:
        pass
