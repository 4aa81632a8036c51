"""The HTTP server: its bounded threads; TLS and authentication by a web configuration file."""
