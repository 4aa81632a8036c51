"""TLS and authentication of the HTTP server, by a web configuration file."""
