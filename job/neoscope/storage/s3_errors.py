"""What boto3's faults mean for the user: certificates, credentials, the bucket.

In: an exception of botocore's. Out: a NeoscopeError that says what to do. It asks nothing of a store.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neoscope.errors import InputError, NeoscopeError, UnavailableError, UsageError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError, SSLError

GIVE_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
    "or run where boto3 finds others"
)


@contextmanager
def translate_errors(bucket: str) -> Iterator[None]:
    """Turn boto3's faults into errors that say what to do."""
    from botocore import exceptions as faults

    try:
        yield
    except faults.ClientError as error:  # of STS, SSO: what gives credentials
        raise InputError(f"cannot get credentials for S3: {error}") from None
    except faults.SSLError as error:
        where = error.kwargs["endpoint_url"]
        if why := untrusted_reason(error):
            raise InputError(
                f"the certificate of {where} is not trusted: {why}; where an authority of your own "
                "has signed it, give its PEM file in AWS_CA_BUNDLE"
            ) from None
        raise UnavailableError(f"storage for s3://{bucket} does not answer: {error}") from None
    except (
        faults.ConnectionError,
        faults.HTTPClientError,
        faults.MetadataRetrievalError,
    ) as error:
        raise UnavailableError(f"storage for s3://{bucket} does not answer: {error}") from None
    except faults.BotoCoreError as error:  # an unknown profile, half a key, no name of a bucket
        raise InputError(f"cannot use s3://{bucket}: {error}") from None
    except OSError as error:  # the file of a web identity's token
        raise InputError(f"cannot use s3://{bucket}: {error.strerror}: {error.filename}") from None
    except ValueError as error:
        raise UsageError(
            f"cannot use s3://{bucket}: {error}; give another --endpoint-url"
        ) from None


def bucket_error(bucket: str, endpoint: str, signed: bool, error: ClientError) -> NeoscopeError:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 404:
        return InputError(
            f"the bucket {bucket} does not exist: create it at {endpoint}, or give another output"
        )
    if status in (401, 403):
        fix = "check the credentials and what they allow"
        if not signed:
            fix = f"there are no credentials: {GIVE_CREDENTIALS}"
        return InputError(
            f"access denied: s3:ListBucket on the bucket {bucket} at {endpoint}; {fix}"
        )
    if status < 500 and status != 429:
        return InputError(f"{endpoint} refuses the bucket {bucket}: {error}")
    return UnavailableError(f"storage for s3://{bucket} does not answer: {error}")


def untrusted_reason(error: SSLError) -> str | None:
    """Why the certificate of a server is not trusted, where that is the fault."""
    cause: Any = error.kwargs.get("error")
    while isinstance(cause, Exception):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ValueError):  # urllib3's own: of another host
            return str(cause)
        cause = cause.args[0] if cause.args else None
    return None
