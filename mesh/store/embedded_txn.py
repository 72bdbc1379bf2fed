"""Transactions of the embedded store: Consul's verbs, and its JSON for keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mesh.store import key_fault
from mesh.store.embedded_state import Draft, Refused, Row


class KvRow(msgspec.Struct, rename="pascal", omit_defaults=True):
    """A key as Consul prints it; `bytes` are base64."""

    lock_index: int
    key: str
    flags: int
    value: bytes | None
    create_index: int
    modify_index: int
    session: str = ""

    @classmethod
    def of(cls, row: Row, value: bool = True) -> KvRow:
        shown = (row.value or None) if value else None
        return cls(row.lock_index, row.key, row.flags, shown, row.create_index, row.modify_index, row.session or "")


class _KvOp(msgspec.Struct, rename="pascal"):
    verb: str
    key: str = ""
    value: bytes | None = None
    flags: int = 0
    index: int = 0
    session: str = ""


class _TxnOp(msgspec.Struct):
    kv: _KvOp | None = msgspec.field(default=None, name="KV")


class TxnFailed(Refused):
    """Some steps' conditions do not hold: which, and why, as Consul prints it."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__("transaction refused")
        self.errors = errors


decode_txn = msgspec.json.Decoder(list[_TxnOp]).decode


def run_txn(draft: Draft, ops: Sequence[_KvOp]) -> list[KvRow]:
    """All steps, each on what those before it left. Raises `TxnFailed`; the draft is to be dropped then."""
    results: list[KvRow] = []
    errors: list[dict[str, Any]] = []
    for position, op in enumerate(ops):
        try:
            if fault := key_fault(op.key):
                raise Refused(fault if op.key else "Must provide key")
            results += _run_op(draft, op)
        except Refused as refusal:
            errors.append({"OpIndex": position, "What": str(refusal)})
    if errors:
        raise TxnFailed(errors)
    return results


def _run_op(draft: Draft, op: _KvOp) -> list[KvRow]:
    key, value = op.key, op.value or b""
    match op.verb:
        case "set":
            row = draft.put(key, value, op.flags)
        case "cas":
            row = draft.put_if(key, value, op.flags, op.index)
        case "lock":
            row = draft.lock(key, value, op.flags, op.session)
        case "unlock":
            row = draft.unlock(key, value, op.flags, op.session)
        case "check-index":
            row = draft.check_index(key, op.index)
        case "check-session":
            row = draft.check_session(key, op.session)
        case "get":
            found = draft.get(key)
            if found is None:
                raise Refused(f'key "{key}" doesn\'t exist')
            return [KvRow.of(found)]
        case "get-tree":
            return [KvRow.of(found) for found in draft.scan(key)]
        case "check-not-exists":
            draft.check_not_exists(key)
            return []
        case "delete":
            draft.delete(key)
            return []
        case "delete-cas":
            draft.delete_if(key, op.index)
            return []
        case "delete-tree":
            draft.delete_prefix(key)
            return []
        case _:
            raise Refused(f'unknown KV verb "{op.verb}"')
    return [KvRow.of(row, value=False)]
