"""AWS KMS as `moto` plays it, over HTTPS on loopback."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.certificates import Authority

REGION = "eu-central-1"


@dataclass
class AwsServer:
    """admin: a client that may do everything."""

    endpoint: str
    authority: Authority
    admin: Any

    def uri(self, name: str) -> str:
        return f"aws-kms:{name}?region={REGION}&endpoint={self.endpoint}&ca={self.authority.ca}"

    def key(self, alias: str = "", **settings: Any) -> str:
        """Make a key; return its ARN."""
        data = self.admin.create_key(**{"KeyUsage": "ENCRYPT_DECRYPT"} | settings)["KeyMetadata"]
        if alias:
            self.admin.create_alias(AliasName=f"alias/{alias}", TargetKeyId=data["KeyId"])
        return str(data["Arn"])


@contextmanager
def aws_server(authority: Authority) -> Iterator[AwsServer]:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("flask_cors", reason="moto's server is not installed")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert, authority.key)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        endpoint = f"https://127.0.0.1:{server.server_port}"
        admin = boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=endpoint,
            verify=str(authority.ca),
            aws_access_key_id="admin",
            aws_secret_access_key="of a test",
        )
        yield AwsServer(endpoint, authority, admin)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
