# cython: language_level=3
"""The facts that a dialogue learns: a Session for the connection, an Envelope for the transaction.

Compiled because the dialogue writes them in its hot path; hooks and sinks read them, and may add attributes
of their own. Knows names and defaults. Refuses to know who sets what, and when.
"""

import cython


@cython.freelist(64)
cdef class Session:
    """What is known of a connection; it outlives STARTTLS, which resets only the hello name.

    ``peer`` is the client's address as the socket gives it; ``ssl`` the ``ssl.SSLObject`` under TLS of either
    kind, else ``None``; ``tls`` tells the same shorter; ``host_name`` what HELO or EHLO said.
    """

    def __init__(self):
        pass


@cython.freelist(256)
cdef class Envelope:
    """One transaction: the reverse-path ``mail_from`` (``"<>"`` is the null path), the forward-paths
    ``rcpt_tos``, the parameters as they were sent, and the message as a ``body``.
    """

    def __init__(self):
        self.rcpt_tos = []

    @property
    def mail_options(self):
        if self._mail_options is None:
            self._mail_options = []
        return self._mail_options

    @mail_options.setter
    def mail_options(self, value):
        self._mail_options = value

    @property
    def rcpt_options(self):
        if self._rcpt_options is None:
            self._rcpt_options = []
        return self._rcpt_options

    @rcpt_options.setter
    def rcpt_options(self, value):
        self._rcpt_options = value

    @property
    def content(self):
        """The message as ``bytes``, made from ``body`` when first asked for; ``None`` before DATA."""
        if self._content is None and self.body is not None:
            self._content = self.original_content
        return self._content

    @content.setter
    def content(self, value):
        self._content = value

    @property
    def original_content(self):
        """The message as ``bytes``, whatever a hook made of ``content``."""
        if self._original_content is None and self.body is not None:
            self._original_content = bytes(self.body)
        return self._original_content

    @original_content.setter
    def original_content(self, value):
        self._original_content = value
