"""moto's S3 over HTTP, with what it leaves out and a bucket of AWS does: signatures, their expiry, regions and policies.

Usage: s3-server.py PORT. Environment: S3_USERS, JSON {access key: {"secret": text, "policy": IAM policy or null}}
(null: everything is allowed); S3_SERVER_REGION. Signatures are computed by botocore, policies evaluated by moto's IAM.
"""

import hmac
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, unquote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

USERS = json.loads(os.environ["S3_USERS"])
REGION = os.environ["S3_SERVER_REGION"]
SKEW_MAX = timedelta(minutes=15)


class Refused(Exception):
    def __init__(self, status, code, message, more=""):
        super().__init__(message)
        self.status = status
        self.body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


def check(environ):
    """Raises Refused unless the request is signed, in time, by somebody who may do what it asks."""
    query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    signing = dict(query) if "X-Amz-Signature" in dict(query) else None
    if signing is None:
        scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            raise Refused("403 Forbidden", "AccessDenied", "Access Denied")
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        stamp, expires = environ["HTTP_X_AMZ_DATE"], None
    else:
        fields = {name: signing[f"X-Amz-{name}"] for name in ("Credential", "SignedHeaders", "Signature")}
        stamp, expires = signing["X-Amz-Date"], int(signing["X-Amz-Expires"])

    access_key, _, region, _, _ = fields["Credential"].split("/")
    user = USERS.get(access_key)
    if user is None:
        raise Refused("403 Forbidden", "InvalidAccessKeyId", "The access key Id you provided does not exist.")
    if region != REGION:
        message = f"The authorization header is malformed; the region '{region}' is wrong; expecting '{REGION}'"
        raise Refused("400 Bad Request", "AuthorizationHeaderMalformed", message, f"<Region>{REGION}</Region>")
    signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    age = datetime.now(timezone.utc) - signed_at
    if expires is None and abs(age) > SKEW_MAX:
        raise Refused("403 Forbidden", "RequestTimeTooSkewed", "The difference between the request time is too large.")
    if expires is not None and age > timedelta(seconds=expires):
        raise Refused("403 Forbidden", "AccessDenied", "Request has expired")

    auth = (S3SigV4Auth if signing is None else UnsignedPayload)(Credentials(access_key, user["secret"]), "s3", region)
    request = signed_part(environ, fields["SignedHeaders"].split(";"))
    request.context["timestamp"] = stamp
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    if not hmac.compare_digest(expected, fields["Signature"]):
        raise Refused("403 Forbidden", "SignatureDoesNotMatch", "The request signature does not match.")
    if user.get("policy") is not None:
        for action, resource in needs(environ, dict(query)):
            if IAMPolicy(json.dumps(user["policy"])).is_action_permitted(action, resource) != PermissionResult.PERMITTED:
                raise Refused("403 Forbidden", "AccessDenied", f"not authorized to perform {action} on {resource}")


def header(environ, name):
    special = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
    return environ.get(special.get(name, "HTTP_" + name.upper().replace("-", "_")), "")


class UnsignedPayload(S3SigV4Auth):
    def payload(self, request):
        return "UNSIGNED-PAYLOAD"


def signed_part(environ, names):
    raw = environ.get("RAW_URI") or environ["REQUEST_URI"]
    path, _, query = raw.partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith("X-Amz-Signature="))
    request = AWSRequest(method=environ["REQUEST_METHOD"], url=f"http://{environ['HTTP_HOST']}{path}?{kept}")
    for name in names:
        request.headers[name] = header(environ, name)
    return request


def needs(environ, query):
    """The actions of the request, with their resources."""
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    bucket_arn, object_arn = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    method = environ["REQUEST_METHOD"]
    if key == "":
        return [("s3:ListBucket" if method in ("GET", "HEAD") else "s3:CreateBucket", bucket_arn)]
    if method in ("GET", "HEAD"):
        return [("s3:GetObject", object_arn)]
    if method == "DELETE":
        return [("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", object_arn)]
    source = environ.get("HTTP_X_AMZ_COPY_SOURCE")
    reads = [("s3:GetObject", "arn:aws:s3:::" + unquote(source).lstrip("/"))] if source else []
    return [("s3:PutObject", object_arn), *reads]


class Checked:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        try:
            check(environ)
        except Refused as refused:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(refused.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(refused.body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [refused.body]
        return self.app(environ, start_response)


class Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *args, **kwargs):
        pass


server = make_server(
    "127.0.0.1",
    int(sys.argv[1]),
    Checked(DomainDispatcherApplication(create_backend_app)),
    threaded=True,
    request_handler=Handler,
)
print("ready", flush=True)
server.serve_forever()
