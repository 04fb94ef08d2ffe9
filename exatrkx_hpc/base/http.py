"""HTTP inside the cluster: without a proxy, and with a pinned certificate."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a program that asks nobody need not wait for the import
    import requests


def cluster_session(certificate: str = "") -> requests.Session:
    """Return a session for addresses inside the cluster; http_proxy is for addresses outside.

    `certificate` is the file with the certificate of an endpoint with TLS: the session trusts that certificate, also if
    an authority has signed it, and what it has signed itself, and nothing else. Raises OSError if it cannot be read.
    """
    import requests
    from requests.adapters import HTTPAdapter

    made = requests.Session()
    made.trust_env = False
    if certificate:
        context = ssl.create_default_context(cafile=certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # otherwise, OpenSSL wants the authority's certificate
        adapter = HTTPAdapter()
        adapter.init_poolmanager(1, 1, ssl_context=context)
        made.mount("https://", adapter)
        made.verify = certificate
    return made
