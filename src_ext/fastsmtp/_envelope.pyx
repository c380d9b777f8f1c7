# cython: language_level=3
"""The facts that a dialogue learns: a Session for the connection, an Envelope for the transaction.

Compiled because the dialogue writes them in its hot path; hooks and sinks read them, and may add attributes
of their own. Knows names and defaults. Refuses to know who sets what, and when.
"""

import logging

import cython

_log = logging.getLogger("mail.log")
_LOGIN_DATA = "Session.login_data is deprecated and will be removed in version 2.0"


@cython.freelist(64)
cdef class Session:
    """What is known of a connection; it outlives STARTTLS, which resets the hello name and what AUTH told.

    ``peer`` is the client's address as the socket gives it; ``tls`` tells whether TLS of either kind is on, and
    ``ssl`` of what kind: the ``ssl.SSLObject``, or in aiosmtpd's interface its facts by name; ``host_name`` what
    HELO or EHLO said; ``proxy_data`` what a PROXY header said; ``authenticated`` and ``auth_data`` what AUTH
    found. ``loop`` is the event loop, where somebody gave it.
    """

    def __init__(self, loop=None):
        self.loop = loop

    @property
    def login_data(self):
        """What ``auth_data`` was before aiosmtpd had it; each use is logged."""
        _log.warning(_LOGIN_DATA)
        return self._login_data

    @login_data.setter
    def login_data(self, value):
        _log.warning(_LOGIN_DATA)
        self._login_data = value

    def note_login(self, login):
        """Sets ``login_data`` without a word, for those who keep it up to date."""
        self._login_data = login


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
