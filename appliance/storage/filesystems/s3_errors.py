"""What botocore raises, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError, StorageUnavailableError
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.http_errors import AccessHint

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html: where the status alone would mislead.
_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
_PASSING = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Busy"})


@contextmanager
def s3_faults(what: str, bucket: str, access: AccessHint) -> Iterator[None]:
    """Turn what work on a bucket raises into errors of ours."""
    from botocore import exceptions as boto  # type: ignore[import-untyped] # has no types

    try:
        yield
    except boto.ClientError as error:
        raise _refusal(what, bucket, access, error) from error
    except boto.SSLError as error:
        raise http_errors.unanswered(what, error.__context__ or error) from error
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
        boto.TokenRetrievalError,
        boto.SSOError,
    ) as error:
        raise AccessDeniedError(f"{what}: {http_errors.clean(str(error))}; {access.remedy}") from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError) as error:
        raise http_errors.unanswered(what, error) from error
    except (boto.BotoCoreError, ValueError) as error:
        raise StorageError(
            f"{what}: {http_errors.clean(str(error))}; check the URI and storage.credentials.s3"
        ) from error
    except OSError as error:
        raise http_errors.unanswered(what, error) from error


def _refusal(what: str, bucket: str, access: AccessHint, error: Exception) -> StorageError:
    response = getattr(error, "response", {})
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return ArtifactNotFoundError(f"{what}: there is no bucket {bucket!r}; check its name and the endpoint")
    if code == "InvalidObjectState":
        return StorageError(f"{what}: lies in an archive class; restore it first")
    if code in _CREDENTIALS:
        return AccessDeniedError(f"{what}: the store refuses {access.credential} ({code}); {access.remedy}")
    if code in _PASSING:
        return StorageUnavailableError(f"{what}: the store answers {code}; try again later")
    wait = http_errors.retry_after(metadata.get("HTTPHeaders", {}).get("retry-after"))
    # An answer to HEAD has no body, so its code is its status.
    return http_errors.refused(what, status, "" if code.isdigit() else code, access, retry_after=wait)
