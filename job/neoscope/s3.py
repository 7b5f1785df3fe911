"""S3-compatible storage: from a URL, boto3's credentials and an endpoint to obstore's store of a bucket.

In: `s3://bucket/prefix`. Out: a store that answers, or an error that says what to do. It does not know
objects. Credentials, region and profile come from boto3's own chain, and from nowhere else.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import S3Store

from neoscope.errors import InputError, NeoscopeError, UnavailableError, UsageError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from obstore.store import RetryConfig

ENDPOINT = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[^/:\s]+)(:\d+)?(/\S*)?")
# A body of some MB on a slow uplink takes minutes; a connection that is not made in seconds is not made.
BODY_TIMEOUT = timedelta(minutes=5)
CONNECT_TIMEOUT = timedelta(seconds=5)
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


def open_bucket(url: str, endpoint_url: str | None, sign_payload: bool) -> tuple[str, S3Store]:
    """The full URL of a place in a bucket that is seen to be there, and the store of it.

    Raises InputError, UnavailableError, UsageError as `storage.open_store`.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not bucket or not prefix:
        raise UsageError(
            f"{url} has no {'prefix' if bucket else 'bucket'}: give s3://bucket/prefix"
        )
    if endpoint_url and not ENDPOINT.fullmatch(endpoint_url):
        shown = re.sub("//.*@", "//...@", endpoint_url)  # people write keys there
        raise UsageError(f"the endpoint {shown} is no URL: give http(s)://host:port")

    import boto3
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        MetadataRetrievalError,
    )
    from obstore.auth.boto3 import Boto3CredentialProvider

    config = Config(
        connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 4}
    )
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            raise InputError(
                "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE, or run where boto3 finds others"
            )
        region = session.region_name or "us-east-1"
        client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
        found = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        raise _bucket_error(bucket, error) from None
    except (ConnectionError, HTTPClientError, MetadataRetrievalError) as error:
        raise UnavailableError(f"storage for s3://{bucket} does not answer: {error}") from None
    except BotoCoreError as error:  # an unknown profile, half a key, a name that no bucket can have
        raise InputError(f"cannot use s3://{bucket}: {error}") from None
    except ValueError as error:
        raise UsageError(
            f"cannot use s3://{bucket}: {error}; give another --endpoint-url"
        ) from None
    endpoint = client.meta.endpoint_url  # from the option, AWS_ENDPOINT_URL or the profile
    backend = S3Store(
        bucket,
        prefix=prefix,
        endpoint=None if endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint,
        region=found.get("BucketRegion", region),
        unsigned_payload=not sign_payload,
        credential_provider=Boto3CredentialProvider(session),
        client_options={
            "timeout": BODY_TIMEOUT,
            "connect_timeout": CONNECT_TIMEOUT,
            "allow_http": True,
        },
        retry_config=RETRY,
    )
    return f"s3://{bucket}/{prefix}", backend


def _bucket_error(bucket: str, error: ClientError) -> NeoscopeError:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 404:
        return InputError(f"the bucket {bucket} does not exist: create it, or give another output")
    if status in (401, 403):
        return InputError(
            f"access denied: s3:ListBucket on the bucket {bucket}; "
            "check the credentials and what they allow"
        )
    if status < 500 and status != 429:
        return InputError(f"storage refuses the bucket {bucket}: {error}")
    return UnavailableError(f"storage for s3://{bucket} does not answer: {error}")
