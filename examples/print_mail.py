"""Prints the mail that comes: the smallest handler.

Run it, with another address if you like::

    python examples/print_mail.py 127.0.0.1:8025

and send it something::

    swaks --server 127.0.0.1:8025 --from me@example.org --to you@example.com
"""

import sys

import fastsmtp


class PrintMail:
    def handle_DATA(self, server, session, envelope):
        print(f"from {envelope.mail_from} to {', '.join(envelope.rcpt_tos)}, {envelope.body.size} octets")
        print(envelope.content.decode("utf-8", "replace"), flush=True)
        return "250 OK"


if __name__ == "__main__":
    listen = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8025"
    sys.exit(fastsmtp.run(PrintMail, listen=[listen]))
