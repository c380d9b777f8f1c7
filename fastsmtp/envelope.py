"""What a hook is told of: the session of a connection and the envelope of a transaction.

Both are written by the compiled dialogue; this module only gives them their public home.
"""

from fastsmtp._envelope import Envelope, Session

__all__ = ["Envelope", "Session"]
