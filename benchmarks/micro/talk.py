"""A dialogue of the compiled core without a socket."""

from fastsmtp._core import Dialogue
from fastsmtp._engine import Engine


class Accepting(Dialogue):
    """A dialogue whose DATA hook, where the engine has one, accepts at once."""

    def ask(self, kind: int, argument: object, options: list[str] | None) -> bytes:
        return b"250 2.0.0 Ok\r\n"


class Talk:
    """One connection that is fed and whose replies are looked at, so that no benchmark times refusals."""

    def __init__(self, engine: Engine) -> None:
        self.replies: list[bytes | bytearray] = []
        self.dialogue = Accepting(engine)
        self.dialogue.connect(self.replies.append)
        self.say(b"EHLO client.example\r\n", b"250")

    def say(self, octets: bytes, *codes: bytes) -> None:
        """Feed octets; the replies must begin with these codes, line by line."""
        self.replies.clear()
        self.dialogue.feed(octets)
        lines = b"".join(self.replies).splitlines()
        answered = [line[:3] for line in lines if line[3:4] != b"-"]
        assert answered == list(codes), self.replies
