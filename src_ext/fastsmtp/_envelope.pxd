"""The facts that a dialogue learns, as the other compiled modules see them."""


cdef class Session:
    cdef public object peer, ssl, host_name, proxy_data, auth_data, authenticated, loop
    cdef object _id, _login_data
    cdef public bint extended_smtp, tls
    cdef dict __dict__


cdef class Envelope:
    cdef public object mail_from, body
    cdef public list rcpt_tos
    cdef public bint smtp_utf8
    cdef object _id, _mail_options, _rcpt_options, _content, _original_content
    cdef dict __dict__
