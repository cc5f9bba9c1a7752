"""A bank on pyeventsourcing's SQLite recorder: one line on stdin is one save by the real program.

    open NAME            a new account
    deposit NAME CENTS   and
    withdraw NAME CENTS
    many N               N deposits to the account "many", which it opens, in one transaction for each
    stop

Each line is answered by the highest notification id.
"""

import sys

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event


class Account(Aggregate):
    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.balance_cents = 0

    @event("Deposited")
    def deposit(self, cents: int) -> None:
        self.balance_cents += cents

    @event("Withdrawn")
    def withdraw(self, cents: int) -> None:
        self.balance_cents -= cents


class Bank(Application):
    pass


def main() -> None:
    bank = Bank(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": sys.argv[1]})
    accounts = {}

    def account(name: str) -> Account:
        return bank.repository.get(accounts[name])

    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "stop":
            break
        if verb == "many":
            opened = Account("many")
            for _ in range(int(words[0])):
                opened.deposit(1)
                bank.save(opened)
        else:
            if verb == "open":
                changed = Account(words[0])
                accounts[words[0]] = changed.id
            else:
                changed = account(words[0])
                getattr(changed, verb)(int(words[1]))
            bank.save(changed)
        print(bank.recorder.max_notification_id(), flush=True)
    bank.close()


main()
