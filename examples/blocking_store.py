"""Puts mail into an SQLite database, with two workers and a hook that waits for the disk.

Run it with an address and a file::

    python examples/blocking_store.py 127.0.0.1:8025 mail.db

and look at what came::

    sqlite3 mail.db 'SELECT received, mail_from, rcpt_tos, length(content) FROM mail'
"""

import json
import sqlite3
import sys
import threading

import fastsmtp
from fastsmtp import SMTPError

LISTEN = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8025"
DATABASE = sys.argv[2] if len(sys.argv) > 2 else "mail.db"


def connect() -> sqlite3.Connection:
    database = sqlite3.connect(DATABASE, timeout=30, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # what is committed is on the disk
    return database


class Store:
    """One for each worker, as ``run`` is given the class: no connection is shared between processes."""

    def __init__(self) -> None:
        self.database = connect()
        self.lock = threading.Lock()  # the hook runs on several threads

    @fastsmtp.blocking
    def handle_DATA(self, server, session, envelope):
        row = (envelope.mail_from, json.dumps(envelope.rcpt_tos), envelope.body.view())
        try:
            with self.lock, self.database:  # commits at the end
                cursor = self.database.execute(
                    "INSERT INTO mail (mail_from, rcpt_tos, content) VALUES (?, ?, ?)", row
                )
        except sqlite3.OperationalError as error:
            raise SMTPError(451, "4.3.0", "Cannot store the message now") from error
        return f"250 OK: stored as {cursor.lastrowid}"


if __name__ == "__main__":
    database = connect()
    database.execute(
        "CREATE TABLE IF NOT EXISTS mail (id INTEGER PRIMARY KEY, received TEXT DEFAULT CURRENT_TIMESTAMP,"
        " mail_from TEXT, rcpt_tos TEXT, content BLOB)"
    )
    database.close()  # before run() forks
    sys.exit(fastsmtp.run(Store, listen=[LISTEN], workers=2))
