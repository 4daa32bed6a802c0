#!/usr/bin/env python3
"""Verifies Dream Engine statements: that no entry was changed, added or left out, and that every balance adds up.

    python3 verify_statement.py statement-2026-10.json statement-2026-11.csv ...

Each file is an answer of GET /v1/billing/statement?month=YYYY-MM, JSON or CSV; months come in their order, and each
must continue the one before. Prints OK, or the first disagreement and exits with 1; 2 where a file is missing or no
statement. See docs/money.md.
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


def once(pairs):
    """A JSON object whose names are all different: of two with one name, readers would take either."""
    check(len(dict(pairs)) == len(pairs), f"a name stands twice in {[name for name, _ in pairs]}")
    return dict(pairs)


def read(path):
    """complete, [(customer, account, opening, entries, closing)]; opening and closing are (seq, balance, head hash)."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    if text.startswith("{"):
        whole = json.loads(text, object_pairs_hook=once)
        return whole["complete"], [
            (whole["customer_id"], one["account"], state(one["opening"], "balance_mils", "head_hash"),
             one["entries"], state(one["closing"], "balance_mils", "head_hash")) for one in whole["accounts"]]
    table = csv.DictReader((line + "\n" for line in text.split("\n")), strict=True)
    once([(name, "") for name in table.fieldnames or []])
    if "customer_id" not in (table.fieldnames or []):
        raise LookupError("it is neither JSON nor CSV with a column customer_id")
    accounts, open_account, complete = [], None, True
    for row in table:
        check(None not in row and None not in row.values(), f"line {table.line_num} has too many cells, or too few")
        account, kind = (row["customer_id"], row["account"]), row["kind"]
        if kind == "opening":
            check(open_account is None, f"line {table.line_num} opens an account before the one before it is closed")
            open_account, opening, entries = account, state(row), []
            continue
        check(account == open_account, f"line {table.line_num}: {account} is not between its opening and closing")
        if kind == "closing":
            accounts.append((*account, opening, entries, state(row)))
            open_account, complete = None, complete and not row["detail"].endswith("to be continued")
        else:  # a leading apostrophe keeps spreadsheets from reading a text as a formula
            entries.append({k: v[1:] if k in ("reference", "detail") and v[:1] == "'" else v for k, v in row.items()})
    check(open_account is None, "the statement is not whole: an account is not closed")
    return complete, accounts


def verify(customer, account, opening, entries, closing):
    seq, balance, head = opening
    check(seq > 0 or opening == (0, 0, ""), f"{account} begins with {opening} and not with nothing")
    for entry in entries:
        where = f"{account} entry {entry['seq']}"
        check(int(entry["seq"]) == seq + 1, f"{where} follows entry {seq}: something is missing or was moved")
        check(entry["prev_hash"] == head, f"{where} does not continue the chain of entry {seq}")
        fields = {"customer_id": customer, "account": account, **entry, "rollout_id": entry["rollout_id"] or ""}
        check((fields["customer_id"], fields["account"]) == (customer, account), f"{where} is of another account")
        text = "\x1f".join(str(fields[name]) for name in HASHED).encode()
        digest = hashlib.sha256(bytes.fromhex(head) + text).hexdigest()
        check(entry["hash"] == digest, f"{where} is not what was hashed: it was changed")
        seq, balance, head = seq + 1, balance + int(entry["amount_mils"]), digest
        check(int(entry["balance_after_mils"]) == balance, f"{where}: the entries add up to {balance} mils")
    check((seq, balance, head) == closing, f"{account} closes with {closing}, its entries with {(seq, balance, head)}")
    return len(entries)


def main(paths):
    ends, count, path, notes, unfinished = {}, 0, "", "", ""
    try:
        for path in paths:
            complete, accounts = read(path)
            check([one[1] for one in accounts] == ["balance", "debt"], "the statement is not whole")
            check(accounts[0][0] == accounts[1][0], "the statement is of two customers")
            for customer, account, opening, entries, closing in accounts:
                before, (seq, mils, _) = ends.get(account, (customer, opening)), opening
                check(before == (customer, opening),
                      f"{account} opens with {opening}, before it stood {before}{unfinished}")
                if account not in ends and seq > 0:
                    notes += f"\n{account} from entry {seq + 1} (balance {mils}); what came before is not verified"
                count += verify(customer, account, opening, entries, closing)
                ends[account] = (customer, closing)
            unfinished = "" if complete else f" ({path} was not complete: get that month again)"
    except (OSError, LookupError, TypeError, AttributeError, UnicodeError) as problem:
        why = f"it lacks {problem}" if isinstance(problem, KeyError) else getattr(problem, "strerror", None) or problem
        print(f"{path}: no statement that can be read ({why})", file=sys.stderr)
        sys.exit(2)
    except Exception as problem:  # what cannot be followed was not verified, either
        sys.exit(f"{path}: {problem if isinstance(problem, ValueError) else repr(problem)}")
    if unfinished:
        notes += f"\nmore entries may come in that month{unfinished}"
    print(f"OK: {count} entries, balance {ends['balance'][1][1]} mils, debt {ends['debt'][1][1]} mils{notes}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
