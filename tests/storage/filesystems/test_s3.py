"""`s3://`: who we are to a store, and what its answers mean."""

from __future__ import annotations

import json
from hashlib import md5
from pathlib import Path

import pytest
from storage.filesystems.test_contract import listed, opened, read
from storage.servers.s3 import ADMIN, BUCKET, PRIVATE, READER, S3Server

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError, StorageUnavailableError
from appliance.storage import materialize
from appliance.storage.filesystems.s3 import S3Store

Environment = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def store(seaweedfs: S3Server) -> S3Server:
    """A store with an object for all, and one for readers."""
    seaweedfs.put("open/x.txt", b"open")
    seaweedfs.put("closed/x.txt", b"closed", PRIVATE)
    return seaweedfs


def settings(**block: object) -> GlobalStorageConfig:
    """Settings with one block of credentials."""
    transfer = {"stall_seconds": 30, "retries": 0}
    return GlobalStorageConfig.model_validate({"transfer": transfer, "credentials": {"s3": [block] if block else []}})


async def credential_and_names(uri: str, given: GlobalStorageConfig) -> tuple[str, list[str]]:
    """Which credential was used, and what it could see."""
    async with opened(uri, given) as store:
        listing = await store.list()
        return store.credential, [file.name for file in listing.files]


async def test_the_keys_of_the_environment_are_used(store: S3Server, only_given_credentials: Environment) -> None:
    """As every AWS tool does, and at the endpoint that the environment names."""
    only_given_credentials.setenv("AWS_ENDPOINT_URL_S3", store.url)
    only_given_credentials.setenv("AWS_ACCESS_KEY_ID", READER[0])
    only_given_credentials.setenv("AWS_SECRET_ACCESS_KEY", READER[1])

    assert await credential_and_names(f"s3://{PRIVATE}/closed", settings()) == ("AWS credentials (env)", ["x.txt"])


async def test_a_profile_of_the_aws_files_is_used(
    store: S3Server, only_given_credentials: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The one that the config names, in the file that the environment names."""
    file = tmp_path_factory.mktemp("aws") / "credentials"
    file.write_text(f"[work]\naws_access_key_id = {READER[0]}\naws_secret_access_key = {READER[1]}\n")
    only_given_credentials.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    used, names = await credential_and_names(f"s3://{PRIVATE}/closed", settings(profile="work", endpoint_url=store.url))
    assert (used, names) == ("AWS credentials (shared-credentials-file)", ["x.txt"])


async def test_an_unknown_profile_is_told(store: S3Server) -> None:
    """It is the user's own setting that is wrong."""
    with pytest.raises(AccessDeniedError, match="nope"):
        await listed(f"s3://{PRIVATE}/closed", settings(profile="nope", endpoint_url=store.url))


async def test_kserves_variables_name_the_endpoint(store: S3Server, only_given_credentials: Environment) -> None:
    """A host without a scheme, and whether to use TLS."""
    only_given_credentials.setenv("S3_ENDPOINT", store.url.removeprefix("http://"))
    only_given_credentials.setenv("S3_USE_HTTPS", "0")
    only_given_credentials.setenv("awsAnonymousCredential", "True")

    assert await credential_and_names(f"s3://{BUCKET}/open", settings()) == ("anonymous", ["x.txt"])


async def test_awss_own_endpoint_goes_before_kserves(store: S3Server, only_given_credentials: Environment) -> None:
    """Who sets both means the standard one."""
    only_given_credentials.setenv("S3_ENDPOINT", "127.0.0.1:9")
    only_given_credentials.setenv("AWS_ENDPOINT_URL", store.url)
    only_given_credentials.setenv("awsAnonymousCredential", "1")

    assert (await credential_and_names(f"s3://{BUCKET}/open", settings()))[1] == ["x.txt"]


@pytest.mark.parametrize("variable", ["S3_USE_HTTPS", "S3_VERIFY_SSL", "awsAnonymousCredential"])
def test_a_variable_of_kserves_that_is_no_flag_is_named(only_given_credentials: Environment, variable: str) -> None:
    """A word that means neither yes nor no is an error, and no default."""
    only_given_credentials.setenv(variable, "perhaps")

    with pytest.raises(StorageError, match=f"the environment variable {variable} is neither 1 nor 0"):
        S3Store(f"s3://{BUCKET}/open", settings())


async def test_a_public_bucket_needs_no_credentials(store: S3Server) -> None:
    """Where none are set up, nothing is signed."""
    used, names = await credential_and_names(f"s3://{BUCKET}/open", settings(endpoint_url=store.url))
    assert (used, names) == ("anonymous, as no AWS credentials are set up", ["x.txt"])


async def test_the_block_of_a_bucket_goes_before_the_one_for_all(store: S3Server) -> None:
    """Whatever their order."""
    general = {"anonymous": True, "endpoint_url": store.url}
    special = {
        "bucket": PRIVATE,
        "access_key_id": READER[0],
        "secret_access_key": READER[1],
        "endpoint_url": store.url,
    }
    both = GlobalStorageConfig.model_validate({"credentials": {"s3": [general, special]}})

    assert await credential_and_names(f"s3://{BUCKET}/open", both) == ("anonymous", ["x.txt"])
    used, names = await credential_and_names(f"s3://{PRIVATE}/closed", both)
    assert (used, names) == ("the keys of storage.credentials.s3", ["x.txt"])


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ({"anonymous": True}, "403"),
        ({"access_key_id": "AKIAWRONG", "secret_access_key": "s3cret-value"}, "the access key ID .InvalidAccessKeyId"),
        ({"access_key_id": READER[0], "secret_access_key": "s3cret-value"}, "secret access key .*SignatureDoesNot"),
    ],
    ids=["anonymous", "wrong key", "wrong secret"],
)
async def test_who_may_not_read_is_told_what_to_set(store: S3Server, block: dict[str, object], code: str) -> None:
    """With the store's own code, and without the secret."""
    with pytest.raises(AccessDeniedError, match=f"{code}.*storage.credentials.s3") as caught:
        await listed(f"s3://{PRIVATE}/closed", settings(endpoint_url=store.url, **block))
    assert "s3cret-value" not in str(caught.value)


async def test_a_bucket_without_its_entry_is_told(store: S3Server, only_given_credentials: Environment) -> None:
    """Its name, or the one of an entry, is often misspelt."""
    only_given_credentials.setenv("AWS_ENDPOINT_URL_S3", store.url)
    with pytest.raises(AccessDeniedError, match=f"no entry .* for the bucket '{PRIVATE}', only for 'other'"):
        await listed(f"s3://{PRIVATE}/closed", settings(bucket="other", endpoint_url=store.url))


async def test_an_absent_bucket_is_told_from_an_absent_prefix(store: S3Server) -> None:
    """The one is a name to correct, the other a path."""
    admin = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "endpoint_url": store.url}

    with pytest.raises(ArtifactNotFoundError, match="no bucket 'nope-nope'"):
        await listed("s3://nope-nope/x", settings(**admin))
    with pytest.raises(ArtifactNotFoundError, match="nothing found"):
        await listed(f"s3://{BUCKET}/nope", settings(**admin))


async def test_markers_of_directories_are_no_files(store: S3Server) -> None:
    """Consoles make an empty object for a directory; it has no name below it."""
    store.put("marked/", b"")
    store.put("marked/sub/", b"")
    store.put("marked/x.txt", b"x")

    used = settings(anonymous=True, endpoint_url=store.url)
    assert (await credential_and_names(f"s3://{BUCKET}/marked/", used))[1] == ["x.txt"]


async def test_an_object_in_one_part_has_its_md5(store: S3Server) -> None:
    """Its ETag."""
    listing = await listed(f"s3://{BUCKET}/open", settings(anonymous=True, endpoint_url=store.url))

    assert listing.files[0].digests["md5"] == md5(b"open").hexdigest()


async def test_an_object_in_several_parts_has_no_md5(moto: S3Server) -> None:
    """The digest of digests of parts says nothing about the whole."""
    upload = moto.client.create_multipart_upload(Bucket=BUCKET, Key="parts/x")
    parts = []
    for number, data in ((1, bytes(5 << 20)), (2, b"rest")):
        answer = moto.client.upload_part(
            Bucket=BUCKET, Key="parts/x", UploadId=upload["UploadId"], PartNumber=number, Body=data
        )
        parts.append({"ETag": answer["ETag"], "PartNumber": number})
    moto.client.complete_multipart_upload(
        Bucket=BUCKET, Key="parts/x", UploadId=upload["UploadId"], MultipartUpload={"Parts": parts}
    )

    key, secret = ADMIN
    block = {"access_key_id": key, "secret_access_key": secret, "endpoint_url": moto.url}
    (file,) = (await listed(f"s3://{BUCKET}/parts", settings(**block))).files
    assert file.size == (5 << 20) + 4
    assert "md5" not in file.digests


async def test_an_unmarked_checksum_over_parts_is_not_taken(moto: S3Server, tmp_path: Path) -> None:
    """Clients upload large files in parts, each with a checksum, and some stores give the sum of those as one."""
    file = tmp_path / "x"
    file.write_bytes(bytes(9 << 20))
    moto.client.upload_file(str(file), BUCKET, "clients-parts/x", ExtraArgs={"ChecksumAlgorithm": "CRC32"})
    head = moto.client.head_object(Bucket=BUCKET, Key="clients-parts/x", ChecksumMode="ENABLED")
    assert "-" not in head["ChecksumCRC32"], "the store marks it, and the test proves nothing"

    block = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "endpoint_url": moto.url}
    (found,) = (await listed(f"s3://{BUCKET}/clients-parts", settings(**block))).files
    assert not found.digests


@pytest.mark.parametrize(
    ("algorithm", "name", "digest"),
    [
        ("SHA256", "sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ("CRC32", "crc32", "cbf43926"),
    ],
)
async def test_a_checksum_that_the_store_keeps_is_taken(moto: S3Server, algorithm: str, name: str, digest: str) -> None:
    """One of the whole object, given when it was stored."""
    moto.client.put_object(Bucket=BUCKET, Key=f"sums-{name}/x", Body=b"123456789", ChecksumAlgorithm=algorithm)

    block = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "endpoint_url": moto.url}
    (file,) = (await listed(f"s3://{BUCKET}/sums-{name}", settings(**block))).files
    assert file.digests[name] == digest


async def test_an_encrypted_object_has_no_md5(moto: S3Server) -> None:
    """With a key of one's own, an ETag only looks like one."""
    moto.client.put_object(Bucket=BUCKET, Key="sealed/x", Body=b"data", ServerSideEncryption="aws:kms")

    block = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "endpoint_url": moto.url}
    (file,) = (await listed(f"s3://{BUCKET}/sealed", settings(**block))).files
    assert "md5" not in file.digests


async def test_a_whole_bucket_is_listed(store: S3Server) -> None:
    """Without a prefix all of it, and without a `/` in front of any name."""
    _, names = await credential_and_names(f"s3://{BUCKET}", settings(anonymous=True, endpoint_url=store.url))
    assert "open/x.txt" in names


async def test_more_objects_than_a_page_has_are_listed(moto: S3Server) -> None:
    """All pages of a listing."""
    from moto.s3.models import s3_backends

    # Past its HTTP interface, which takes seconds for as many.
    for number in range(1010):
        s3_backends["123456789012"]["aws"].put_object(BUCKET, f"many/{number}", b"")

    block = {"access_key_id": ADMIN[0], "secret_access_key": ADMIN[1], "endpoint_url": moto.url}
    assert len((await listed(f"s3://{BUCKET}/many", settings(**block))).files) == 1010


async def test_who_may_read_and_not_list_gets_one_object(store: S3Server) -> None:
    """A right to read an object is enough to name it."""
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{PRIVATE}/*"}
    store.client.put_bucket_policy(
        Bucket=PRIVATE, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )
    given = settings(anonymous=True, endpoint_url=store.url)
    try:
        async with opened(f"s3://{PRIVATE}/closed/x.txt", given) as anonymous:
            listing = await anonymous.list()
            assert listing.is_file
            assert await read(anonymous, listing.files[0], 0, 6) == b"closed"
    finally:
        store.client.delete_bucket_policy(Bucket=PRIVATE)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://a/b", "s3://b\nucket/key", "s3://me:s3cret@bucket/key"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    """And no secret in it is shown."""
    with pytest.raises(StorageError, match="names no bucket") as caught:
        S3Store(uri, settings())
    assert "s3cret" not in str(caught.value)


async def test_a_version_of_an_object_is_chosen_by_an_option(moto: S3Server) -> None:
    """The one that its owner wrote before the last."""
    moto.client.create_bucket(Bucket="versions")
    moto.client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    first = moto.client.put_object(Bucket="versions", Key="m/x.txt", Body=b"first")["VersionId"]
    moto.client.put_object(Bucket="versions", Key="m/x.txt", Body=b"second")
    given = settings(access_key_id=ADMIN[0], secret_access_key=ADMIN[1], endpoint_url=moto.url)

    async with opened("s3://versions/m/x.txt", given, {"versionId": first}) as store:
        (file,) = (await store.list()).files
        assert await read(store, file, 0, file.size) == b"first"
    with pytest.raises(StorageError, match=r"storage\.options: {versionId: ID}"):
        S3Store(f"s3://versions/m/x.txt?versionId={first}", given)


async def test_an_option_goes_over_what_is_set_here(store: S3Server) -> None:
    """And is known to s3fs."""
    given = settings(endpoint_url="http://127.0.0.1:9")
    async with opened(
        f"s3://{BUCKET}/open", given, {"endpoint_url": store.url, "requester_pays": True}
    ) as opened_store:
        assert [file.name for file in (await opened_store.list()).files] == ["x.txt"]
    with pytest.raises(StorageError, match=r"'requester_pay'; did you mean \"requester_pays\""):
        async with opened(f"s3://{BUCKET}/open", given, {"requester_pay": True}) as opened_store:
            await opened_store.list()


async def test_an_endpoint_without_tls_is_told(store: S3Server, only_given_credentials: Environment) -> None:
    """By the variable that KServe's users set, or by the address."""
    only_given_credentials.setenv("S3_ENDPOINT", store.url.removeprefix("http://"))
    with pytest.raises(StorageError, match="does not speak TLS; set S3_USE_HTTPS=0"):
        await listed(f"s3://{BUCKET}/open", settings(anonymous=True))
    only_given_credentials.delenv("S3_ENDPOINT")
    with pytest.raises(StorageError, match="does not speak TLS; begin its address with http://"):
        await listed(f"s3://{BUCKET}/open", settings(anonymous=True, endpoint_url=store.url.replace("http:", "https:")))


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT", None])
def test_files_of_one_endpoint_do_not_stand_in_for_those_of_another(
    store: S3Server, only_given_credentials: Environment, tmp_path: Path, variable: str | None
) -> None:
    """The same bucket at another store has other files; what was fetched is found again at its own."""
    storage = StorageConfig(uri=f"s3://{BUCKET}/open")

    def at(url: str, *, offline: bool) -> GlobalStorageConfig:
        if variable:
            only_given_credentials.setenv(variable, url)
        given = settings(**({} if variable else {"endpoint_url": url}))
        return given.model_copy(update={"cache_dir": tmp_path / "cache", "offline": offline})

    path = materialize(storage, at(store.url, offline=False))

    with pytest.raises(StorageUnavailableError):
        materialize(storage, at("http://127.0.0.1:9", offline=False))
    with pytest.raises(ArtifactNotFoundError, match="not in the cache"):
        materialize(storage, at("http://127.0.0.1:9", offline=True))
    assert materialize(storage, at(store.url, offline=True)) == path
