"""HTTP/1.1 to an engine: GET requests over Unix sockets, TCP, TLS and programs such as ssh."""
