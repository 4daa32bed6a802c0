#!/usr/bin/env python3
"""Verifies Dream Engine statements: that no entry was changed, added or left out, and that every balance adds up.

    python3 verify_statement.py statement-2026-10.json statement-2026-11.csv ...

Each file is an answer of GET /v1/billing/statement?month=YYYY-MM, JSON or CSV; months come in their order, and each
must continue the one before. Prints OK, or the first disagreement and exits with 1. See docs/money.md.
"""
import csv
import hashlib
import json
import sys

HASHED = "customer_id account seq kind amount_mils balance_after_mils rollout_id reference detail created_at".split()


def check(holds, otherwise):
    if not holds:
        raise ValueError(otherwise)


def state(row, balance="balance_after_mils", head="hash"):
    return int(row["seq"]), int(row[balance]), row[head]


def read(path):
    """[(customer, account, opening, entries, closing)], where opening and closing are (seq, balance, head hash)."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    if text.startswith("{"):
        whole = json.loads(text)
        return [(whole["customer_id"], one["account"], state(one["opening"], "balance_mils", "head_hash"),
                 one["entries"], state(one["closing"], "balance_mils", "head_hash")) for one in whole["accounts"]]
    accounts = []
    for row in csv.DictReader((line + "\n" for line in text.split("\n")), strict=True):
        if row["kind"] == "opening":
            entries, opening = [], state(row)
        elif row["kind"] == "closing":
            accounts.append((row["customer_id"], row["account"], opening, entries, state(row)))
        else:  # a leading apostrophe keeps spreadsheets from reading a text as a formula
            entries.append({k: v[1:] if k in ("reference", "detail") and v[:1] == "'" else v for k, v in row.items()})
    return accounts


def verify(customer, account, opening, entries, closing):
    seq, balance, head = opening
    check(seq > 0 or opening == (0, 0, ""), f"{account} begins with {opening} and not with nothing")
    for entry in entries:
        where = f"{account} entry {entry['seq']}"
        check(int(entry["seq"]) == seq + 1, f"{where} follows entry {seq}: something is missing or was moved")
        check(entry["prev_hash"] == head, f"{where} does not continue the chain of entry {seq}")
        fields = {"customer_id": customer, "account": account, **entry, "rollout_id": entry["rollout_id"] or ""}
        text = "\x1f".join(str(fields[name]) for name in HASHED).encode()
        digest = hashlib.sha256(bytes.fromhex(head) + text).hexdigest()
        check(entry["hash"] == digest, f"{where} is not what was hashed: it was changed")
        seq, balance, head = seq + 1, balance + int(entry["amount_mils"]), digest
        check(int(entry["balance_after_mils"]) == balance, f"{where}: the entries add up to {balance} mils")
    check((seq, balance, head) == closing, f"{account} closes with {closing}, its entries with {(seq, balance, head)}")
    return len(entries)


def main(paths):
    ends, count, path = {}, 0, ""
    try:
        for path in paths:
            accounts = read(path)
            check([one[1] for one in accounts] == ["balance", "debt"], "the statement is not whole")
            for customer, account, opening, entries, closing in accounts:
                before = ends.get(account, (customer, opening))
                check(before == (customer, opening), f"{account} opens with {opening}, before it stood {before}")
                count += verify(customer, account, opening, entries, closing)
                ends[account] = (customer, closing)
    except Exception as problem:  # what cannot be read was not verified, either
        sys.exit(f"{path}: {problem if isinstance(problem, ValueError) else repr(problem)}")
    print(f"OK: {count} entries, balance {ends['balance'][1][1]} mils, debt {ends['debt'][1][1]} mils")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
