"""S3-compatible storage: from a URL, boto3's settings and an endpoint to obstore's store of a bucket.

In: `s3://bucket/prefix`. Out: a store that answers, or an error that says what to do. It does not know
objects. boto3 asks for the bucket once, and obstore then asks the same host, signs for the same region, with
the same credentials, and trusts the same certificates: every setting that boto3 has counts for both.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from neoscope.errors import InputError, UsageError
from neoscope.storage.s3_errors import (
    GIVE_CREDENTIALS,
    bucket_error,
    translate_errors,
    untrusted_reason,
)

if TYPE_CHECKING:
    from botocore.config import Config
    from botocore.session import Session
    from obstore.store import ClientConfig, RetryConfig, S3Config

ENDPOINT = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[^/:@\s]+)(:\d+)?(/\S*)?")
ENDPOINT_KEY = "aws_endpoint_url_s3"
DIRECTORY_BUCKET = "--x-s3"  # the end of its name, which no other bucket may have
# A body of some MB on a slow uplink takes minutes; a connection that is not made in seconds is not made.
BODY_TIMEOUT = timedelta(minutes=5)
CONNECT_TIMEOUT = timedelta(seconds=5)
# obstore asks for credentials again when these have less than five minutes left, so before every request.
# botocore answers from memory, and knows when they expire; obstore's own guess is half an hour.
CREDENTIALS_LAST = timedelta(minutes=1)
# obstore repeats refused connections, 429 and 5xx by itself; its default of ten tries gives up after
# 2 to 6 s, which does not outlast the restart of a store. It repeats neither a create nor a delete whose
# connection broke, since the store may have done it, nor a listing that was cut: `Store._do` does.
RETRY: RetryConfig = {
    "max_retries": 30,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=3),
}


@dataclass(frozen=True)
class Asked:
    """The last request that boto3 made for a bucket, as it signed it."""

    url: str
    region: str

    def in_host(self, bucket: str) -> bool:
        """Whether the bucket stands in the host's name (virtual-hosted style), not in the path."""
        return not urlsplit(self.url).path.endswith(f"/{bucket}")

    def endpoint(self, bucket: str) -> str:
        """The endpoint as obstore takes it: with the bucket where it stands in the host's name."""
        return self.url.removesuffix(f"/{bucket}").rstrip("/")


def open_bucket(
    url: str, endpoint_url: str | None, *, sign_payload: bool, change: bool, root: bool = False
) -> tuple[str, S3Store]:
    """The full URL of a prefix in a bucket that is seen to be there, and the store of it.

    Without credentials requests are not signed, as a public bucket takes them; not so with `change`.
    Raises InputError, UnavailableError, UsageError as `storage.open_store`.
    """
    bucket, prefix = _bucket_and_prefix(url, root)
    _check_endpoint(endpoint_url)

    from obstore.auth.boto3 import Boto3CredentialProvider

    with translate_errors(bucket):
        session = _session()
        signed = _has_credentials(session)
        if change and not signed:
            raise InputError(f"no credentials for S3: {GIVE_CREDENTIALS}")
        trusted = _trusted(session)
        asked = _ask(session, bucket, endpoint_url, trusted, signed)
    # Of a botocore session the provider takes no region, which would win over the bucket's.
    credentials = Boto3CredentialProvider(session, ttl=CREDENTIALS_LAST) if signed else None
    # Each of these is in the environment too, where obstore looks by itself and boto3 by other rules.
    backend = S3Store(
        bucket,
        prefix=prefix or None,
        config=_endpoint(asked.endpoint(bucket)),
        virtual_hosted_style_request=asked.in_host(bucket),
        region=asked.region,
        skip_signature=not signed,
        unsigned_payload=not sign_payload,
        credential_provider=credentials,
        client_options=_client_options(asked, trusted),
        retry_config=RETRY,
    )
    return f"s3://{bucket}/{prefix}", backend


def sibling(backend: S3Store, **changed: Any) -> S3Store:
    """A store as `backend` but for some of its arguments: `prefix`, `client_options`, `retry_config`, or
    fields of `config`."""
    arguments = {
        name: changed.pop(name, getattr(backend, name))
        for name in ("prefix", "client_options", "retry_config", "credential_provider")
    }
    config: Any = {
        f"aws_{key}" if f"aws_{key}" == ENDPOINT_KEY else key: value
        for key, value in backend.config.items()
    }
    config |= changed
    return S3Store(config=config, **arguments)


def _endpoint(url: str) -> S3Config:
    """The setting of the endpoint. obstore takes AWS_ENDPOINT_URL_S3 before `endpoint`; the setting that
    wins over that variable makes a store that cannot be pickled, so it is given only where it must be."""
    other = os.environ.get(ENDPOINT_KEY.upper(), url) != url
    return {ENDPOINT_KEY: url} if other else {"endpoint": url}  # type: ignore[misc]


def _bucket_and_prefix(url: str, root: bool) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not bucket or not (prefix or root):
        raise UsageError(
            f"{url} has no {'prefix' if bucket else 'bucket'}: give s3://bucket/prefix"
        )
    if bucket.endswith(DIRECTORY_BUCKET):
        raise UsageError(
            f"{bucket} is a directory bucket (S3 Express One Zone), which cannot list as neoscope "
            "needs it: give a general purpose bucket"
        )
    return bucket, prefix


def _check_endpoint(url: str | None) -> None:
    """Raise UsageError for what is no URL of a server, and without the keys that people write there."""
    if url and not ENDPOINT.fullmatch(url):
        shown = re.sub("//.*@", "//...@", url)
        raise UsageError(f"the endpoint {shown} is no URL: give http(s)://host:port")


def _session() -> Session:
    """botocore's session: profile, credentials and settings as boto3 finds them, and a region."""
    from botocore.session import get_session

    session = get_session()
    if not session.get_config_variable("region"):
        # AWS_REGION is what AWS's other tools read; boto3 does not.
        session.set_config_variable("region", os.environ.get("AWS_REGION") or "us-east-1")
    return session


def _has_credentials(session: Session) -> bool:
    """Whether there are credentials; those that a process or a role gives are fetched now."""
    credentials = session.get_credentials()
    if credentials is None:
        return False
    credentials.get_frozen_credentials()
    return True


def _trusted(session: Session) -> Path:
    """The file of certificate authorities that boto3 trusts; obstore is to trust them too."""
    from botocore.httpsession import get_cert_path

    bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    path = Path(str(bundle or get_cert_path(True)))
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            f"cannot read the certificate authorities in {path}: {error.strerror or error}; give a "
            "PEM file in AWS_CA_BUNDLE, or unset it"
        ) from None
    return path


def _ask(
    session: Session, bucket: str, endpoint_url: str | None, trusted: Path, signed: bool
) -> Asked:
    """Ask for the bucket with boto3, and tell how: after a redirection, in the bucket's region."""
    client: Any = session.create_client(
        "s3", endpoint_url=endpoint_url, verify=str(trusted), config=_config(signed)
    )
    _check_endpoint(client.meta.endpoint_url)  # of a variable or a profile
    asked: list[Asked] = []

    def note(request: Any, region_name: str, **_: Any) -> None:
        asked.append(Asked(request.url, region_name))

    client.meta.events.register("before-sign.s3.HeadBucket", note)
    client.meta.events.register_first("needs-retry.s3.HeadBucket", _stop_at_untrusted)
    try:
        client.head_bucket(Bucket=bucket)
    except client.exceptions.ClientError as error:
        if error.operation_name != "HeadBucket":
            raise
        raise bucket_error(bucket, asked[-1].endpoint(bucket), signed, error) from None
    return asked[-1]


def _config(signed: bool) -> Config:
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 4}
    )
    return config if signed else config.merge(Config(signature_version=UNSIGNED))


def _client_options(asked: Asked, trusted: Path) -> ClientConfig:
    options: ClientConfig = {
        "timeout": BODY_TIMEOUT,
        "connect_timeout": CONNECT_TIMEOUT,
        "allow_http": True,
    }
    if asked.url.startswith("https:"):
        options["root_certificate"] = trusted.read_bytes()
    return options


def _stop_at_untrusted(caught_exception: Exception | None = None, **_: Any) -> None:
    """Raise what retrying will not help: botocore takes it for a connection that broke."""
    from botocore.exceptions import SSLError

    if isinstance(caught_exception, SSLError) and untrusted_reason(caught_exception):
        raise caught_exception
