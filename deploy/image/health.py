"""The image's HEALTHCHECK: asks the agent's /healthz where its own options have it listen.

Exits with 0 when it is healthy, or when it lives and says that it doesn't know us (--web-config).
It knows the options of GPUBPF_* variables and of the file that GPUBPF_CONFIG names, not those that
follow `serve` on the command line: set --listen and --web-config there.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

from gpubpf.config import load


def main() -> int:
    options = load({}, os.environ)
    host, port = options.listen
    host = host if host not in ("", "::", "0.0.0.0") else "localhost"  # noqa: S104
    scheme = "http" if options.web_config is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/healthz"
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # it asks itself
    direct = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(url, timeout=5) as answer:
            print(answer.read(200).decode().strip())
            return 0
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.reason}")
        return 0 if error.code in (401, 429) else 1
    except OSError as error:
        print(f"{url}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
